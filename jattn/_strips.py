"""Attention a strip of query rows at a time, in plain differentiable JAX: whole rows of scores, never all of them.

The twin of the fused kernels (their higher derivatives are derivatives of this), and the way of the normalisers that
have no online form.  `jax.checkpoint` around a strip keeps the memory of any derivative linear in t + s.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from jattn import _terms
from jattn._blocks import Tiling
from jattn._geometry import Step
from jattn._problem import Spec, tile_width
from jattn._terms import Signature
from jattn.normalizers import THRESHOLD, logsumexp

_KEPT = jax.checkpoint_policies.save_only_these_names(THRESHOLD)
_STRIP = 2**20  # scores of a strip, over all heads


def rows(
    signature: Signature,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    operands: list[Any],
    finish: Callable,
    extra: Any = None,
) -> Any:
    """Any function of whole rows of scores, for all rows.

    `finish(terms, extra, scores [bt, s], value [s, e], i, j)` of one head returns a pytree of arrays `[bt, ..]`; the
    result has them as `[b, t, h, ..]`.  `extra` is a term or a pytree of them, cut to the tile as the terms are.
    """
    more, extra_signature = _terms.split(extra)
    fn: Any = functools.partial(_rows, signature, extra_signature, finish)
    placed = jax.typeof(q).sharding
    if AxisType.Explicit in placed.mesh.axis_types:  # loops over sharded arrays are for the partitioner to place
        fn = jax.sharding.auto_axes(fn, out_sharding=PartitionSpec(*placed.spec[:3]))
    return fn(q, k, v, operands, more)


def _rows(
    signature: Signature,
    extra_signature: Signature,
    finish: Callable,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    operands: list[Any],
    more: list[Any],
) -> Any:
    own, operands = len(operands), [*operands, *more]
    axes = (*signature.axes, *extra_signature.axes)
    lengths = [x.shape[0] for x in (q, k, v)] + [x.shape[0] for x, a in zip(operands, axes, strict=True) if "b" in a]
    b, (t, h), (s, g) = max(lengths), q.shape[1:3], k.shape[1:3]
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    spread = lambda x: x if x.shape[0] == b else jnp.tile(x, (b // x.shape[0], *[1] * (x.ndim - 1)))
    per_element = [spread(x) for x in (q, k, v)], [spread(x) for x, a in zip(operands, axes, strict=True) if "b" in a]
    width = tile_width(signature.fill(operands[:own]), q)
    query = Tiling(t, max(1, min(t, _STRIP // (h * s * width))))

    def element(arrays):
        (q, k, v), mine = jax.tree.map(lambda x: x[None], arrays)
        rest = iter(mine)
        held = [next(rest) if "b" in a else x for x, a in zip(operands, axes, strict=True)]

        @functools.partial(jax.checkpoint, policy=_KEPT)
        def strip(n):
            at = {"b": (0, 1), "g": (0, g), "h": (0, h), "t": (query.start(n), query.block), "s": (0, s)}
            step = Step(at, h // g)
            i, j = step.positions()

            def head(query, key, value, tiles):
                terms, cut = signature.fill(tiles[:own]), extra_signature.fill(tiles[own:])
                return finish(terms, cut, terms.scores(query, key, i, j), value, i, j)

            tiles = [step.operand(x, a) for x, a in zip(held, axes, strict=True)]
            tile = _terms.lift(head, axes, ("bgr", "bg", "bg"))(
                step.rows(q).astype(dtype), step.columns(k).astype(dtype), step.columns(v).astype(dtype), tiles
            )
            return jax.tree.map(lambda x: jnp.moveaxis(x[0].reshape(h, *x.shape[3:]), 0, 1), tile)

        if query.count == 1:
            return strip(0)
        strips = jax.lax.map(strip, jnp.arange(query.count))
        return jax.tree.map(lambda x: _join(x, t), strips)

    if b == 1:
        return jax.tree.map(lambda x: x[None], element(jax.tree.map(lambda x: x[0], per_element)))
    together = max(1, _STRIP // (h * s * width * query.block))
    return jax.lax.map(element, per_element, batch_size=min(b, together) if together > 1 else None)


def _join(strips: jax.Array, t: int) -> jax.Array:
    """[strips, bt, ..] -> [t, ..]; the last strip was moved back to fit and repeats rows."""
    count, block = strips.shape[:2]
    left = t - (count - 1) * block
    return jnp.concatenate([strips[:-1].reshape(-1, *strips.shape[2:]), strips[-1, block - left :]])


def attend(spec: Spec, q: Any, k: Any, v: Any, operands: list[Any]) -> tuple[jax.Array, jax.Array]:
    """out and lse of softmax attention: the twin of `_primitives.attend`."""

    def finish(terms, _, scores, value, i, j):
        lse = logsumexp(scores)
        p = jnp.exp(scores - jnp.where(jnp.isneginf(lse), 0, lse)[:, None])
        return jnp.matmul(terms.weights(p, i, j), value, precision=spec.precision).astype(spec.dtype), lse

    return rows(spec.signature, q, k, v, operands, finish)
