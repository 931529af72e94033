"""Programs that take a step of decoding: jattn's and its peers', from the same arrays.

Lengths and tables of pages are constants of the program, so that a walk over compiled kernels can follow them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from bench.decode._cases import WINDOW, Case


class Program(NamedTuple):
    """A function of arrays, and their shapes: q `[b, 1, h, d]`, k and v, and of an int8 cache their scales."""

    run: Callable[..., jax.Array]
    shapes: list[jax.ShapeDtypeStruct]


def lengths(case: Case) -> np.ndarray:
    """How many keys each example has, its newest included."""
    return np.full(case.b, case.fill, np.int32)


def table(case: Case) -> np.ndarray:
    """Which page of the pool each page of each example is: as after a while of serving, in no order."""
    assert case.page is not None
    per = case.n // case.page
    return np.random.default_rng(0).permutation(case.b * per).reshape(case.b, per).astype(np.int32)


def shapes(case: Case, dtype: DTypeLike) -> list[jax.ShapeDtypeStruct]:
    """The shapes of the arrays of a step, queries in `dtype`."""
    stored = jnp.int8 if case.kind == "int8" else dtype
    lead = (case.b, case.n) if case.page is None else (case.b * case.n // case.page, case.page)
    keys = jax.ShapeDtypeStruct((*lead, case.g, case.d), stored)
    arrays = [jax.ShapeDtypeStruct((case.b, 1, case.h, case.d), dtype), keys, keys]
    return arrays + [jax.ShapeDtypeStruct((*lead, case.g), jnp.float32)] * (2 if case.kind == "int8" else 0)


def jattn_step(case: Case, implementation: str | None) -> Callable[..., jax.Array]:
    """A step as `jattn.nn` takes it."""
    import jattn
    from jattn import masks

    attend: Any = jattn.attention  # options come as a dictionary
    near = masks.window(WINDOW - 1) if case.kind == "window" else masks.causal()
    options: dict[str, Any] = {} if case.page is None else {"pages": table(case)}

    def step(q: jax.Array, k: jax.Array, v: jax.Array, *scales: jax.Array) -> jax.Array:
        have = jnp.asarray(lengths(case))
        more = {"scales": scales} if scales else {}
        return attend(
            q,
            k,
            v,
            mask=near & masks.prefix(have),
            positions=have - 1,
            implementation=implementation,
            **options,
            **more,
        )

    return step


def in_rows(case: Case, k: jax.Array, scale: jax.Array | None, dtype: DTypeLike) -> jax.Array:
    """Keys or values as peers that know nothing of pages and scales take them."""
    if scale is not None:
        k = (k.astype(jnp.float32) * scale[..., None]).astype(dtype)
    return k if case.page is None else k[table(case)].reshape(case.b, case.n, case.g, case.d)


def seen(case: Case) -> jax.Array:
    """Which keys a query sees, `[b, 1, 1, n]`."""
    j, have = jnp.arange(case.n), jnp.asarray(lengths(case))[:, None]
    mask = j < have
    mask = mask & (j >= have - WINDOW) if case.kind == "window" else mask
    return mask[:, None, None]


def jax_step(case: Case) -> Callable[..., jax.Array]:
    """`jax.nn.dot_product_attention`, which is told the lengths where they say all."""

    def step(q: jax.Array, k: jax.Array, v: jax.Array, *scales: jax.Array) -> jax.Array:
        k, v = (in_rows(case, x, c, q.dtype) for x, c in zip((k, v), scales or (None, None), strict=True))
        if case.kind == "window":
            return jax.nn.dot_product_attention(q, k, v, mask=seen(case))
        return jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=jnp.asarray(lengths(case)))

    return step


def plain_step(case: Case) -> Callable[..., jax.Array]:
    """As one writes it in jnp."""

    def step(q: jax.Array, k: jax.Array, v: jax.Array, *scales: jax.Array) -> jax.Array:
        k, v = (in_rows(case, x, c, q.dtype) for x, c in zip((k, v), scales or (None, None), strict=True))
        grouped = q.reshape(case.b, case.g, case.h // case.g, case.d)
        scores = jnp.einsum("bgrd,bsgd->bgrs", grouped, k, preferred_element_type=jnp.float32) * case.d**-0.5
        weights = jax.nn.softmax(jnp.where(seen(case), scores, -jnp.inf), axis=-1).astype(q.dtype)
        return jnp.einsum("bgrs,bsgd->bgrd", weights, v).reshape(q.shape)

    return step


def paged_attention_step(case: Case) -> Program:
    """JAX's own kernel for pages, in its layout `[g, p, page, d]`."""
    from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention

    assert case.page is not None
    pool = jax.ShapeDtypeStruct((case.g, case.b * case.n // case.page, case.page, case.d), jnp.bfloat16)
    together = max(1, min(512, case.n) // case.page)

    def step(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        have, pages = jnp.asarray(lengths(case)), jnp.asarray(table(case))
        return paged_attention(q, k, v, have, pages, pages_per_compute_block=together)

    return Program(step, [jax.ShapeDtypeStruct((case.b, case.h, case.d), jnp.bfloat16), pool, pool])


def ragged_step(case: Case) -> Program:
    """JAX's kernel for pages of ragged batches, keys and values of a page in turn `[p, page, 2 g, d]`."""
    from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ragged_paged_attention

    assert case.page is not None
    pool = jax.ShapeDtypeStruct((case.b * case.n // case.page, case.page, 2 * case.g, case.d), jnp.bfloat16)
    sizes = {"num_kv_pages_per_block": max(1, 512 // case.page), "num_queries_per_block": 8}  # it asks a TPU for others

    def step(q: jax.Array, kv: jax.Array) -> jax.Array:
        have, pages = jnp.asarray(lengths(case)), jnp.asarray(table(case))
        starts = jnp.arange(case.b + 1, dtype=jnp.int32)
        return ragged_paged_attention(q, kv, have, pages, starts, jnp.array([case.b], jnp.int32), **sizes)

    return Program(step, [jax.ShapeDtypeStruct((case.b, case.h, case.d), jnp.bfloat16), pool])


def tpu_program(case: Case, contender: str) -> Program:
    """What is compiled for a TPU: `jattn`, `paged_attention` or `ragged`."""
    if contender == "jattn":
        return Program(jattn_step(case, "pallas_tpu"), shapes(case, jnp.bfloat16))
    return {"paged_attention": paged_attention_step, "ragged": ragged_step}[contender](case)
