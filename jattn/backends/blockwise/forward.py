"""Softmax attention, a tile at a time."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jattn_kernels import online_softmax

from jattn._terms import AnyArray
from jattn.backends.blockwise.sizes import geometry
from jattn.backends.blockwise.walk import Hidden, Walk, Where, hide, nothing
from jattn.backends.contract import Key, Query, Result, Spec, Value
from jattn.backends.steps import Step


def forward(spec: Spec, q: Query, k: Key, v: Value, operands: Sequence[AnyArray]) -> Result:
    """Softmax attention of q `[b, t, h, d]`, k `[b, s, g, d]`, v `[b, s, g, e]`."""
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    if nothing(q, k):
        shape = (q.shape[0], *q.shape[1:3])
        row = jnp.zeros(shape, dtype)
        return Result(jnp.zeros((*shape, v.shape[-1]), spec.dtype), row - jnp.inf, row)
    walk = Walk(spec, geometry(spec, q, k, v, operands), q, operands)

    def strip(step: Step, where: Where, carry: Result):
        query, _ = walk.scaled(step, walk.rows(step, q))

        def tile(here: Step, hidden: Hidden, state: online_softmax.State | None):
            tiles = walk.tiles(here)
            seen = walk.seen(here, hidden, tiles)
            key, value = (walk.key(here, x, seen) for x in (k, v))
            scores = hide(walk.scores(here)(query, key, tiles), walk.shown(here, hidden, tiles))
            top, p, shrink = online_softmax.exponentials(state, scores)
            p = jax.lax.optimization_barrier(p)  # else XLA computes the exponentials again for their sum
            total, out = jnp.sum(p, -1), walk.products.rows(walk.weights(here, hidden)(p, tiles), value)
            if state is not None:
                total, out = state.total * shrink + total, state.out * shrink[..., None] + out
            return online_softmax.State(top, total, out)

        start = online_softmax.start(query.shape[:-1], v.shape[-1], walk.dtype)
        state = walk.keys(step, where, tile, start if walk.geo.key.count > 1 else None)
        return Result(*map(step.put_rows, carry, online_softmax.finish(state)))

    shape = (walk.geo.b, q.shape[1], walk.geo.h)
    out, row = jnp.zeros((*shape, v.shape[-1]), spec.dtype), jnp.zeros(shape, walk.dtype)
    return walk.strips(strip, Result(out, row, row))
