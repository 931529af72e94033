"""Softmax attention, a tile at a time."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jattn_kernels import online_softmax

from jattn._terms import AnyArray
from jattn.backends.blockwise.sizes import Strip, geometry
from jattn.backends.blockwise.walk import Tile, Walk, hide, nothing
from jattn.backends.contract import Key, Query, Result, Spec, Value


def forward(spec: Spec, q: Query, k: Key, v: Value, operands: Sequence[AnyArray]) -> Result:
    """Softmax attention of q `[b, t, h, d]`, k `[b, s, g, d]`, v `[b, s, g, e]`."""
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    if nothing(q, k):
        shape = (q.shape[0], *q.shape[1:3])
        row = jnp.zeros(shape, dtype)
        return Result(jnp.zeros((*shape, v.shape[-1]), spec.dtype), row - jnp.inf, row)
    walk = Walk(spec, geometry(spec, q, k, v, operands), q, operands)

    def strip(rows: Strip, carry: tuple[jax.Array, jax.Array]):
        query, _ = walk.scaled(rows.step, walk.rows(rows.step, q))

        def visit(tile: Tile, state: online_softmax.State | None):
            here = tile.step
            tiles = walk.tiles(here)
            seen = walk.seen(tile, tiles)
            key, value = (walk.key(here, x, seen) for x in (k, v))
            scores = hide(walk.scores(here)(query, key, tiles), walk.shown(tile, tiles))
            top, p, shrink = online_softmax.exponentials(state, scores)
            p = jax.lax.optimization_barrier(p)  # else XLA computes the exponentials again for their sum
            total, out = jnp.sum(p, -1), walk.products.rows(walk.weights(tile)(p, tiles), value)
            if state is not None:
                total, out = state.total * shrink + total, state.out * shrink[..., None] + out
            return online_softmax.State(top, total, out)

        start = online_softmax.start(query.shape[:-1], v.shape[-1], walk.dtype)
        state = walk.keys(rows, visit, start if walk.geo.key.count > 1 else None)
        out, lse, remainder = online_softmax.finish(state)
        of_rows = jnp.stack([lse, remainder], -1)  # one array is one kernel that writes into it
        return tuple(map(rows.step.put_rows, carry, (out, of_rows)))

    shape = (walk.geo.b, q.shape[1], walk.geo.h)
    out, of_rows = jnp.zeros((*shape, v.shape[-1]), spec.dtype), jnp.zeros((*shape, 2), walk.dtype)
    out, of_rows = walk.strips(strip, (out, of_rows))
    return Result(out, of_rows[..., 0], of_rows[..., 1])
