"""The backward kernels behind the contract: along queries, along keys, and along pairs for each operand that is learned
there.

Gradients of tables that a user's function looks up are left to the tiled twin of all backends; see `looked_up`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jattn_kernels.gpu.gradients import UNSEEN
from jattn_kernels.gpu.layout import OperandLayout
from jattn_kernels.gpu.sizes import Lengths

from jattn._terms import AnyArray
from jattn.backends.batches import folded
from jattn.backends.blockwise import BLOCKWISE
from jattn.backends.contract import Gradients, Key, Lse, Out, Query, Result, Spec, Value
from jattn.backends.pallas.backward import in_32_bits
from jattn.backends.pallas.terms import of_rows_that_see
from jattn.backends.pallas_gpu.call import Call, in_tiles, without_unseen
from jattn.backends.pallas_gpu.kernels import kernels
from jattn.backends.pallas_gpu.terms import looked_up


@in_32_bits
def backward(
    spec: Spec,
    q: Query,
    k: Key,
    v: Value,
    operands: Sequence[AnyArray],
    result: Result,
    dout: Out,
    dlse: Lse,
    active: Sequence[bool],
) -> Gradients:
    """Gradients; see `jattn.backends.contract.Fused.backward`."""
    wide = lambda x: x.astype(jnp.float32)
    out, *of_lse = result
    keys = without_unseen(spec, operands, q, k, v)
    of_kernel = functools.partial(Call, spec, *keys, operands, q.shape[1])
    along_t, along_s = of_kernel("queries"), of_kernel("keys", "s")
    functions = along_t.functions
    delta, (lse, share) = jnp.sum(wide(dout) * wide(out), -1) - dlse, functions.lse_and_share(*of_lse)
    # All gradients are linear in these: the kernels need not multiply each weight.
    rows, of_out, delta = q, wide(dout) * share[..., None], delta * share
    if along_t.terms.blind:  # what stands in rows that see nothing reaches nothing: it would as 0 * NaN
        rows, of_out, delta = (of_rows_that_see(x, lse) for x in (q, of_out, delta))
    lse = jnp.where(jnp.isneginf(lse), UNSEEN, lse)
    of_rows = [_stretched(lse, UNSEEN), _stretched(delta, 0)]
    arrays = [in_tiles(spec, x) for x in (rows, *keys, of_out)]
    family = kernels(spec.target)
    of_tables = [x and y for x, y in zip(active, looked_up(spec, operands), strict=True)]
    fused = [x and not y for x, y in zip(active, of_tables, strict=True)]

    def run(kernel: Callable, call: Call, along: tuple[str, ...], of_pairs: Callable | None = None) -> Any:
        """What the kernel gives for its rows, and the gradients of the operands that have such rows; and those of each
        operand of pairs, by a launch of its own, where there is a kernel for them."""
        laid_out, pull, layouts = jax.vjp(call.operands, operands, has_aux=True)
        which = [n for n, y in enumerate(call.terms.active(fused)) if y]
        slots = tuple(n for n in which if layouts[n].along in along)
        given = *arrays, of_rows, laid_out, layouts
        *rest, sums = kernel(*given, slots, *call.given, interpret=call.interpret)
        of_slots = dict(zip(slots, sums, strict=True))
        for n in which:
            if of_pairs is not None and layouts[n].along in ("ts", "r"):
                of_tiles = of_kernel("pairs", layouts[n].along)
                of_slots[n] = of_pairs(*given, n, *of_tiles.given, interpret=call.interpret)
        places = enumerate(zip(laid_out, layouts, strict=True))
        cotangents: Any = [_cotangent(x, layout, of_slots.get(n)) for n, (x, layout) in places]
        return *rest, pull(cotangents)[0]

    dq, of_t = run(family.queries, along_t, ("t", ""), family.pairs)
    dk, dv, of_s = run(family.keys, along_s, ("s",))
    doperands = [x + y if z else None for x, y, z in zip(of_t, of_s, active, strict=True)]
    if any(of_tables):
        every = [jnp.asarray(x) for x in operands]
        twin = BLOCKWISE.backward(spec, q, k, v, every, result, dout, dlse, of_tables)
        doperands = [x if y else z for x, y, z in zip(twin.operands, of_tables, doperands, strict=True)]
    own = lambda x, like: folded(x[..., : like.shape[-1]], like)
    return Gradients(own(dq, q), own(dk, k), own(dv, v), doperands)


def _stretched(x: jax.Array, rest: float) -> jax.Array:
    """`[b, t, h]` as kernels take it, `[b, h, t]` with a length that tiles divide."""
    missing = Lengths(x.shape[1], 0).padded["t"] - x.shape[1]
    return jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, missing)), constant_values=rest)


def _cotangent(x: jax.Array, layout: OperandLayout, gradient: jax.Array | None) -> Any:
    """The gradient of an array in its layout, from what each row of each head adds to it, or from what all pairs do;
    zeros where there is none."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return np.zeros(x.shape, jax.dtypes.float0)
    if gradient is None or layout.along in ("ts", "r"):
        return jnp.zeros_like(x) if gradient is None else gradient.astype(x.dtype)
    total = gradient.reshape(-1, layout.batch, *gradient.shape[1:]).sum(0)
    total = total if layout.heads > 1 else total.sum(1, keepdims=True)
    if not layout.along:
        return total.sum(-1).astype(x.dtype)
    return jnp.pad(total, ((0, 0), (0, 0), (0, x.shape[-1] - total.shape[-1]))).astype(x.dtype)
