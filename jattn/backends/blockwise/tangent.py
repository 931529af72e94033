"""Tangents of softmax attention, a tile at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jattn import _terms
from jattn._terms import AnyArray
from jattn.backends.blockwise.sizes import QueryStrip, geometry
from jattn.backends.blockwise.walk import VisitedTile, Walk, hide, nothing, probabilities
from jattn.backends.contract import Key, Lse, Out, Query, Result, Spec, Tangents, Value
from jattn.backends.steps import Step


def _steady(x: jax.Array) -> Any:
    """A tangent of zeros."""
    return jnp.zeros_like(x) if jnp.issubdtype(x.dtype, jnp.floating) else np.zeros(x.shape, jax.dtypes.float0)


def tangent(
    spec: Spec,
    q: Query,
    k: Key,
    v: Value,
    operands: Sequence[AnyArray],
    result: Result,
    tangents: Tangents,
) -> tuple[Out, Lse]:
    """Tangents of out and lse: with p the weights before the gates and W the gates, s and ds of a tile,

    dlse = sum p ds,  dout = sum (W(p ds) + dW(p)) v + W(p) dv  -  dlse out.

    Rows that see nothing have none, whatever stands in them.
    """
    out, lse, remainder = result
    if nothing(q, k):
        return jnp.zeros_like(out), jnp.zeros_like(lse)
    walk = Walk(spec, geometry(spec, q, k, v, operands), q, operands)
    dq, dk, dv, doperands = tangents

    def strip(rows: QueryStrip, carry: tuple[jax.Array, jax.Array]):
        step = rows.step
        strip_lse, strip_remainder = step.rows(lse), step.rows(remainder)
        live = strip_lse != -jnp.inf
        plain, dplain = (walk.rows(step, x, live) for x in (q, dq))
        query, dquery = _scaled_tangent(walk, step, plain, dplain, doperands)

        def visit(tile: VisitedTile, state: tuple[jax.Array, jax.Array]):
            here = tile.step
            tiles = walk.tiles(here)
            seen = walk.seen(tile, tiles)
            key, dkey, value, dvalue = (walk.key(here, x, seen) for x in (k, dk, v, dv))
            dtiles = [
                _steady(x) if d is None else here.operand(d, a)
                for x, d, a in zip(tiles, doperands, walk.axes, strict=True)
            ]
            shown = walk.shown(tile, tiles)
            scores, ds = jax.jvp(walk.scores(here, shown), (query, key, tiles), (dquery, dkey, dtiles))
            p = probabilities(hide(scores, shown), strip_lse, strip_remainder)
            pds = p * ds
            w, dw = jax.jvp(walk.weights(tile), (p, tiles), (pds, dtiles))
            add = walk.products.rows(dw, value) + walk.products.rows(w, dvalue)
            return state[0] + add, state[1] + jnp.sum(pds, -1)

        start = (jnp.zeros((*query.shape[:-1], v.shape[-1]), walk.dtype), jnp.zeros(query.shape[:-1], walk.dtype))
        dout, dlse = walk.keys(rows, visit, start)
        dlse = jnp.where(live, dlse, 0)
        dout = jnp.where(live[..., None], dout - dlse[..., None] * walk.rows(step, out), 0)
        return tuple(step.put_rows(whole, part) for whole, part in zip(carry, (dout, dlse), strict=True))

    return walk.strips(strip, (jnp.zeros(out.shape, out.dtype), jnp.zeros(lse.shape, lse.dtype)))


def _scaled_tangent(
    walk: Walk, step: Step, query: jax.Array, dquery: jax.Array, doperands: Sequence[jax.Array | None]
) -> tuple[Any, Any]:
    """The scaled query and its tangent."""
    scaled = lambda x: walk.scaled(step, x)[0]
    _, at = walk.scale()
    scaled_query, dscaled = jax.jvp(scaled, (query,), (dquery,))
    moving = None if at is None else doperands[at]
    if at is not None and moving is not None:  # both factors move
        times = _terms.lift(lambda x, tiles: x * tiles[0], (walk.axes[at],), ("bgr",))
        dscaled = dscaled + times(query, [step.operand(moving, walk.axes[at])])
    return scaled_query, dscaled
