"""Gradients of softmax attention, a tile at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jattn._terms import AnyArray
from jattn.backends.blockwise.sizes import QueryStrip, geometry
from jattn.backends.blockwise.walk import VisitedTile, Walk, hide, nothing, probabilities
from jattn.backends.contract import Gradients, Key, Lse, Out, Query, Result, Spec, Value


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
    """Gradients of q, k, v and of the operands, None for those that are not `active`.

    With p = exp(s - lse), w the weights after the gates and delta = dout . out - dlse:
    dv = w' dout,  dp = the gates' transpose of dout v',  ds = p (dp - delta),  and s pulls ds back to q, k, operands.

    Rows that see nothing have gradient 0 and give none, whatever stands in them.
    """
    wide = lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32))
    grads = (wide(q), wide(k), wide(v), [wide(x) if y else None for x, y in zip(operands, active, strict=True)])
    if not nothing(q, k):
        walk = Walk(spec, geometry(spec, q, k, v, operands), q, operands)
        grads = _backward(walk, (q, k, v), result, (dout, dlse), grads)
    dq, dk, dv, doperands = grads
    cast = lambda x, like: x.astype(like.dtype)
    own = [None if x is None else cast(x, like) for x, like in zip(doperands, operands, strict=True)]
    return Gradients(cast(dq, q), cast(dk, k), cast(dv, v), own)


Sums = tuple[jax.Array, jax.Array, jax.Array, list[jax.Array | None]]
"""The gradients of q, k, v and the operands as far as tiles have added to them."""


def _backward(
    walk: Walk,
    arrays: tuple[jax.Array, jax.Array, jax.Array],
    result: Result,
    cotangents: tuple[jax.Array, jax.Array],
    grads: Sums,
) -> Any:
    """`backward`, added to zeros `grads`."""
    (q, k, v), (out, lse, remainder), (dout, dlse) = arrays, result, cotangents
    once = walk.geo.query.whole and q.shape[0] == walk.geo.b and walk.geo.key.count == 1
    wide = lambda x: x.astype(walk.dtype)
    all_delta = jnp.sum(wide(dout) * wide(out), -1) - wide(dlse)

    def strip(rows: QueryStrip, grads: Sums):
        step = rows.step
        live = step.rows(lse) != -jnp.inf
        if not walk.geo.query.whole:  # rows that belong to another strip as well count there
            live = live & (step.positions()[0][:, 0] >= rows.block * walk.geo.query.block)
        query, unscale = walk.scaled(step, walk.rows(step, q, live))
        query, upstream = map(jax.lax.optimization_barrier, (query, walk.rows(step, dout, live)))

        def visit(tile: VisitedTile, sums: Sums):
            dq, dk, dv, doperands = sums
            here = tile.step
            tiles = walk.tiles(here)
            seen = walk.seen(tile, tiles)
            key, value = (walk.key(here, x, seen) for x in (k, v))
            shown = walk.shown(tile, tiles)
            scores, pull = walk.pull_scores(here, query, key, tiles, shown)
            # What rows have is cut out for each tile anew: to XLA that is a part of what uses it, not a kernel.
            tile_lse, tile_remainder, delta = map(here.rows, (lse, remainder, all_delta))
            alive = tile_lse != -jnp.inf if walk.geo.query.whole else live
            delta = jnp.where(alive, delta, 0)
            p = jax.lax.optimization_barrier(probabilities(hide(scores, shown), tile_lse, tile_remainder))
            w, gates_pull = jax.vjp(walk.weights(tile), p, tiles)
            dp, dtiles_gates = gates_pull(walk.products.scores(upstream, value))
            if walk.terms.gates:  # what one makes of a row that sees nothing may be NaN
                w, dp = (jnp.where(alive[..., None], x, 0) for x in (w, dp))
            dv = walk.put_key(here, dv, walk.products.columns(w, upstream))
            dquery, dkey, dtiles = pull(p * (dp - delta[..., None]))
            dk = walk.put_key(here, dk, dkey)
            doperands = [
                here.put_operand(whole, axes, a + b) if whole is not None else None
                for whole, axes, a, b in zip(doperands, walk.axes, dtiles, dtiles_gates, strict=True)
            ]
            dquery, dscale = unscale(jnp.where(alive[..., None], dquery, 0))
            _, at = walk.scale()
            if at is not None and (whole := doperands[at]) is not None:
                doperands[at] = here.put_operand(whole, walk.axes[at], dscale)
            return here.put_rows(dq, dquery, add=not once), dk, dv, doperands

        return walk.keys(rows, visit, grads)

    return walk.strips(strip, grads)
