"""Attention in plain XLA, a tile at a time: the fast path on CPU and the fallback everywhere.

What is computed for each tile; `_walk` says which tiles, `_products` how they are multiplied.  Memory is the output and
one tile per loop.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jattn_kernels import online_softmax

from jattn import _blocks, _terms, masks
from jattn._geometry import Geometry, Step
from jattn._problem import Cut, Result, Spec, tile_width
from jattn.backends._walk import Walk
from jattn.scores import Product


def _nothing(q: jax.Array, k: jax.Array) -> bool:
    """Whether there is no pair at all."""
    return 0 in (*q.shape[:2], *k.shape[:2])


def forward(spec: Spec, q: jax.Array, k: jax.Array, v: jax.Array, operands: Any) -> Result:
    """Softmax attention of q `[b, t, h, d]`, k `[b, s, g, d]`, v `[b, s, g, e]`."""
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    if _nothing(q, k):
        shape = (q.shape[0], *q.shape[1:3])
        nothing = jnp.zeros(shape, dtype)
        return Result(jnp.zeros((*shape, v.shape[-1]), spec.dtype), nothing - jnp.inf, nothing)
    walk = Walk(spec, geometry(spec, q, k, v, operands), q, operands)

    def strip(step, where, carry):
        query, _ = walk.scaled(step, walk.rows(step, q))

        def tile(here, hidden, state):
            tiles = walk.tiles(here)
            seen = walk.seen(here, hidden, tiles)
            key, value = (walk.key(here, x, seen) for x in (k, v))
            scores = walk.hide(here, hidden, tiles, walk.scores(here)(query, key, tiles))
            top, p, shrink = online_softmax.exponentials(state, scores)
            p = jax.lax.optimization_barrier(p)  # else XLA computes the exponentials again for their sum
            total, out = jnp.sum(p, -1), walk.products.rows(walk.weights(here)(p, tiles), value)
            if state is not None:
                total, out = state.total * shrink + total, state.out * shrink[..., None] + out
            return online_softmax.State(top, total, out)

        start = online_softmax.start(query.shape[:-1], v.shape[-1], walk.dtype)
        state = walk.keys(step, where, tile, start if walk.geo.key.count > 1 else None)
        return Result(*map(step.put_rows, carry, online_softmax.finish(state)))

    shape = (walk.geo.b, q.shape[1], walk.geo.h)
    out, row = jnp.zeros((*shape, v.shape[-1]), spec.dtype), jnp.zeros(shape, walk.dtype)
    return walk.strips(strip, Result(out, row, row))


def _probabilities(scores: jax.Array, lse: jax.Array, remainder: jax.Array) -> jax.Array:
    return jnp.exp(scores - online_softmax.finite(lse)[..., None]) * jnp.exp(-remainder)[..., None]


def _steady(x: jax.Array) -> Any:
    """A tangent of zeros."""
    return jnp.zeros_like(x) if jnp.issubdtype(x.dtype, jnp.floating) else np.zeros(x.shape, jax.dtypes.float0)


def tangent(spec: Spec, q: Any, k: Any, v: Any, operands: Any, result: Result, tangents: Any) -> tuple[Any, Any]:
    """Tangents of out and lse: with p the weights before the gates and W the gates, s and ds of a tile,

    dlse = sum p ds,  dout = sum (W(p ds) + dW(p)) v + W(p) dv  -  dlse out.

    Rows that see nothing have none, whatever stands in them.
    """
    out, lse, remainder = result
    if _nothing(q, k):
        return jnp.zeros_like(out), jnp.zeros_like(lse)
    walk = Walk(spec, geometry(spec, q, k, v, operands), q, operands)
    dq, dk, dv, doperands = tangents

    def strip(step, where, carry):
        strip_lse, rest = step.rows(lse), step.rows(remainder)
        live = strip_lse != -jnp.inf
        plain, dplain = (walk.rows(step, x, live) for x in (q, dq))
        query, dquery = _scaled_tangent(walk, step, plain, dplain, doperands)

        def tile(here, hidden, state):
            tiles = walk.tiles(here)
            seen = walk.seen(here, hidden, tiles)
            key, dkey, value, dvalue = (walk.key(here, x, seen) for x in (k, dk, v, dv))
            dtiles = [
                _steady(x) if d is None else here.operand(d, a)
                for x, d, a in zip(tiles, doperands, walk.axes, strict=True)
            ]
            scores, ds = jax.jvp(walk.scores(here), (query, key, tiles), (dquery, dkey, dtiles))
            p = _probabilities(walk.hide(here, hidden, tiles, scores), strip_lse, rest)
            pds = p * ds
            w, dw = jax.jvp(walk.weights(here), (p, tiles), (pds, dtiles))
            add = walk.products.rows(dw, value) + walk.products.rows(w, dvalue)
            return state[0] + add, state[1] + jnp.sum(pds, -1)

        start = (jnp.zeros((*query.shape[:-1], v.shape[-1]), walk.dtype), jnp.zeros(query.shape[:-1], walk.dtype))
        dout, dlse = walk.keys(step, where, tile, start)
        dlse = jnp.where(live, dlse, 0)
        dout = jnp.where(live[..., None], dout - dlse[..., None] * walk.rows(step, out), 0)
        return tuple(step.put_rows(whole, part) for whole, part in zip(carry, (dout, dlse), strict=True))

    return walk.strips(strip, (jnp.zeros(out.shape, out.dtype), jnp.zeros(lse.shape, lse.dtype)))


def _scaled_tangent(walk: Walk, step: Step, query: Any, dquery: Any, doperands: Any) -> tuple[Any, Any]:
    """The scaled query and its tangent."""
    scaled = lambda x: walk.scaled(step, x)[0]
    _, at = walk.scale()
    found, dfound = jax.jvp(scaled, (query,), (dquery,))
    if at is not None and doperands[at] is not None:  # both factors move
        times = _terms.lift(lambda x, tiles: x * tiles[0], (walk.axes[at],), ("bgr",))
        dfound = dfound + times(query, [step.operand(doperands[at], walk.axes[at])])
    return found, dfound


def backward(
    spec: Spec, q: Any, k: Any, v: Any, operands: Any, result: Result, dout: Any, dlse: Any, learn: Any
) -> Any:
    """Gradients of q, k, v and of the operands, None for those that do not `learn`.

    With p = exp(s - lse - remainder), w the weights after the gates, delta = dout . out - dlse:
    dv = w' dout,  dp = the gates' transpose of dout v',  ds = p (dp - delta),  and s pulls ds back to q, k, operands.

    Rows that see nothing have gradient 0 and give none, whatever stands in them.
    """
    wide = lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32))
    grads = (wide(q), wide(k), wide(v), [wide(x) if y else None for x, y in zip(operands, learn, strict=True)])
    if not _nothing(q, k):
        walk = Walk(spec, geometry(spec, q, k, v, operands), q, operands)
        grads = _backward(walk, (q, k, v), result, (dout, dlse), grads)
    dq, dk, dv, doperands = grads
    cast = lambda x, like: x.astype(like.dtype)
    return (
        cast(dq, q),
        cast(dk, k),
        cast(dv, v),
        [x if x is None else cast(x, like) for x, like in zip(doperands, operands, strict=True)],
    )


def _backward(walk: Walk, arrays: tuple[Any, Any, Any], result: Result, cotangents: tuple[Any, Any], grads: Any) -> Any:
    """`backward`, added to zeros `grads`."""
    (q, k, v), (out, lse, remainder), (dout, dlse) = arrays, result, cotangents
    query_once = walk.geo.query.whole and q.shape[0] == walk.geo.b

    def strip(step, where, grads):
        strip_lse, rest = step.rows(lse), step.rows(remainder)
        live = strip_lse != -jnp.inf
        if not walk.geo.query.whole:  # rows that belong to another strip as well count there
            live = live & (step.positions()[0][:, 0] >= where[2] * walk.geo.query.block)
        query, unscale = walk.scaled(step, walk.rows(step, q, live))
        upstream = jax.lax.optimization_barrier(walk.rows(step, dout, live))
        query = jax.lax.optimization_barrier(query)
        delta = jnp.where(live, jnp.sum(upstream * walk.rows(step, out), -1) - walk.rows(step, dlse), 0)

        def tile(here, hidden, carry):
            dquery, dk, dv, doperands = carry
            tiles = walk.tiles(here)
            seen = walk.seen(here, hidden, tiles)
            key, value = (walk.key(here, x, seen) for x in (k, v))
            scores, pull = walk.pull_scores(here, query, key, tiles)
            p = _probabilities(walk.hide(here, hidden, tiles, scores), strip_lse, rest)
            p = jax.lax.optimization_barrier(p)
            w, gates_pull = jax.vjp(walk.weights(here), p, tiles)
            dv = walk.put_key(here, dv, walk.products.columns(w, upstream))
            dp, dtiles_gates = gates_pull(walk.products.scores(upstream, value))
            dq, dkey, dtiles = pull(p * (dp - delta[..., None]))
            dk = walk.put_key(here, dk, dkey)
            doperands = [
                here.put_operand(whole, axes, a + b) if whole is not None else None
                for whole, axes, a, b in zip(doperands, walk.axes, dtiles, dtiles_gates, strict=True)
            ]
            return dq if dquery is None else dquery + dq, dk, dv, doperands

        dq, dk, dv, doperands = grads
        start = jnp.zeros_like(query) if walk.geo.key.count > 1 else None
        dquery, dk, dv, doperands = walk.keys(step, where, tile, (start, dk, dv, doperands))
        dquery, dscale = unscale(jnp.where(live[..., None], dquery, 0))
        _, at = walk.scale()
        if at is not None and doperands[at] is not None:
            doperands[at] = step.put_operand(doperands[at], walk.axes[at], dscale)
        return step.put_rows(dq, dquery, add=not query_once), dk, dv, doperands

    return walk.strips(strip, grads)


# Tile sizes


_STEP = 3 * 2**19  # numbers a step holds, over heads and batch: fewer wake the threads too often, more leave the caches
_FEW = 64  # query rows, over all heads, up to which a head's keys are not worth a copy


def tile_sizes(t: int, s: int, group: int, mask: Any, width: int, joined: bool) -> tuple[int, int]:
    """Query and key rows of a tile, from timings of `python -m bench cpu` on two cores.

    Products run faster the larger the tile; a mask wastes less the smaller it is, and a window much narrower than a
    tile wastes most of it; a score that holds `width` numbers a pair wants as many times fewer pairs.  The query heads
    of a group lie side by side in one product.  Keys that lie as in memory are read where they are, all at once, unless
    a mask may have some of them skipped.
    """
    if joined:
        return t, s if mask is None else 1024
    if width > 1:
        side = 64
    elif mask is None:
        side = 1024
    else:
        side = min(512, max(128, _reach(mask)))
    return max(side // group, 16), side


def _reach(mask: Any) -> int:
    """How many keys a query sees at most, as far as windows of a fixed width say."""
    if isinstance(mask, masks.And):
        return min(_reach(mask.left), _reach(mask.right))
    if isinstance(mask, masks.Window) and isinstance(mask.left, int) and isinstance(mask.right, int):
        return mask.left + mask.right + 1
    return 2**31


def _even(length: int, block: int) -> int:
    """The block size at most `block` that divides `length` most evenly."""
    return -(-length // -(-length // block))


def _divisor(n: int, most: int) -> int:
    return max(x for x in range(1, n + 1) if n % x == 0 and (x <= most or x == 1))


def geometry(spec: Spec, q: Any, k: Any, v: Any, operands: Any) -> Geometry:
    """Sizes of the call's tiles; `spec.tile` overrides the table."""
    (t, h), (s, g) = q.shape[1:3], k.shape[1:3]
    lengths = [x.shape[0] for x in (q, k, v)]
    lengths += [x.shape[0] for x, axes in zip(operands, spec.signature.axes, strict=True) if "b" in axes]
    alike = math.gcd(*(n for n in lengths if n > 1)) or 1  # batch elements that one step can take
    terms = spec.terms(operands)
    masked, width, group = terms.mask is not None, tile_width(terms, q), h // g
    joined = spec.tile is None and g > 1 and t * h <= _FEW and isinstance(terms.compare, Product)
    rows, columns = spec.tile or tile_sizes(t, s, group, terms.mask, width, joined)
    query, key = (_blocks.Tiling(n, _even(n, block)) for n, block in ((t, rows), (s, columns)))
    if joined and not masked:
        return Geometry(max(lengths), h, g, query, key, alike, g, joined)
    held = group * query.block * key.block * width  # by the scores of a key head, and by its rows
    held += (group * query.block + key.block) * (q.shape[-1] + v.shape[-1])
    heads = g if joined else _divisor(g, _STEP // held)
    batch = 1
    if heads == g and (key.count == 1 or not _blocks.ragged(terms.mask)):
        batch = _divisor(alike, _STEP // (held * g))
    return Geometry(max(lengths), h, g, query, key, batch, heads, joined)


def cut(spec: Spec, q: Any, k: Any, v: Any, operands: Any, mask: Any, known: bool) -> Cut:
    """How the call is cut; blocks are counted where the mask is `known`."""
    geo = geometry(spec, q, k, v, operands)
    tile = geo.query.block, geo.key.block
    if not known:
        return Cut(tile, None)
    heads = geo.heads * geo.group
    found = _blocks.table(mask, geo.query, geo.key, geo.batch, heads)
    full, partial = (np.asarray(x) for x in (found.full, found.partial))
    rows = (geo.b // geo.batch, geo.h // heads, geo.query.count)
    alike = geo.batch * heads  # every row of the table stands for this many batch elements and heads
    full, partial = (int(np.broadcast_to(x, rows).sum()) * alike for x in (full, partial))
    return Cut(tile, (geo.b * geo.h * geo.query.count * geo.key.count - full - partial, partial, full))
