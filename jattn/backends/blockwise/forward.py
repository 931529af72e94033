"""Softmax attention, a tile at a time."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jattn_kernels import online_softmax

from jattn._call.pages import flat
from jattn._terms import AnyArray
from jattn.backends.blockwise.sizes import QueryStrip, geometry
from jattn.backends.blockwise.walk import VisitedTile, Walk, hide, nothing
from jattn.backends.contract import Key, Query, Result, Shaped, Spec, Value
from jattn.backends.pages import Paged


def takes_pages(spec: Spec, q: Shaped, k: Shaped, v: Shaped, table: Shaped, operands: Sequence[Shaped]) -> bool:
    """Where all queries are one strip each key is cut once: else keys that are gathered at first are copied less often;
    see `jattn.backends.contract.InPages.takes`."""
    return geometry(spec, q, flat(k, table), flat(v, table), operands).query.count == 1


def forward_in_pages(
    spec: Spec, q: jax.Array, k: jax.Array, v: jax.Array, table: jax.Array, operands: list[jax.Array]
) -> Result:
    """`forward` of pages that `takes_pages`; see `jattn.backends.contract.InPages.forward`."""
    key = geometry(spec, q, flat(k, table), flat(v, table), operands).key
    aligned = key.whole and key.block % k.shape[1] == 0
    return forward(spec, q, Paged(k, table, aligned), Paged(v, table, aligned), operands)


def forward(spec: Spec, q: Query, k: Key | Paged, v: Value | Paged, operands: Sequence[AnyArray]) -> Result:
    """Softmax attention of q `[b, t, h, d]`, k `[b, s, g, d]`, v `[b, s, g, e]`."""
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    if nothing(q, k):
        shape = (q.shape[0], *q.shape[1:3])
        row = jnp.zeros(shape, dtype)
        return Result(jnp.zeros((*shape, v.shape[-1]), spec.dtype), row - jnp.inf, row)
    walk = Walk(spec, geometry(spec, q, k, v, operands), q, operands)

    def strip(rows: QueryStrip, carry: tuple[jax.Array, jax.Array]):
        query, _ = walk.scaled(rows.step, walk.rows(rows.step, q))
        # XLA scales and turns what the loop over keys holds in one kernel if its heads are one axis, else in two.
        shape, held = query.shape, jax.lax.optimization_barrier(query.reshape(-1, *query.shape[-2:]))

        def visit(tile: VisitedTile, state: online_softmax.State | None):
            here = tile.step
            tiles = walk.tiles(here)
            seen = walk.seen(tile, tiles)
            key, value = (walk.key(here, x, seen) for x in (k, v))
            scores = hide(walk.scores(here)(held.reshape(shape), key, tiles), walk.shown(tile, tiles))
            top, p, shrink = online_softmax.exponentials(state, scores)
            p = jax.lax.optimization_barrier(p)  # else XLA computes the exponentials again for their sum
            total, out = jnp.sum(p, -1), walk.products.rows(walk.weights(tile)(p, tiles), value)
            if state is not None:
                total, out = state.total * shrink + total, state.out * shrink[..., None] + out
            return online_softmax.State(top, total, out)

        start = online_softmax.start(shape[:-1], v.shape[-1], walk.dtype)
        state = walk.keys(rows, visit, start if walk.geo.key.count > 1 else None)
        out, lse, remainder = online_softmax.finish(state)
        of_rows = jnp.stack([lse, remainder], -1)  # one array is one kernel that writes into it
        return tuple(map(rows.step.put_rows, carry, (out, of_rows)))

    shape = (walk.geo.b, q.shape[1], walk.geo.h)
    out, of_rows = jnp.zeros((*shape, v.shape[-1]), spec.dtype), jnp.zeros((*shape, 2), walk.dtype)
    out, of_rows = walk.strips(strip, (out, of_rows))
    return Result(out, of_rows[..., 0], of_rows[..., 1])
