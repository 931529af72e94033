"""Attention in plain XLA, a tile at a time: the fast path on CPU and the fallback everywhere.

Query rows are taken a strip at a time; for each strip a loop visits the full key blocks, which never look at the mask,
and another the partial ones; empty blocks are never visited.  Memory is the output and one tile per loop.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jattn_kernels import online_softmax

from jattn import _blocks, _terms
from jattn._geometry import Geometry, Step
from jattn._problem import Cut, Spec, tile_width
from jattn.scores import Product


def _loop(lower: Any, upper: Any, body: Callable, carry: Any) -> Any:
    """`fori_loop` that leaves out loops known to be empty, and the loop around a single step."""
    if isinstance(lower, int) and isinstance(upper, int) and upper - lower <= 1:
        return body(lower, carry) if upper > lower else carry
    return jax.lax.fori_loop(jnp.int32(lower), jnp.int32(upper), body, carry)


class _Walk:
    """Visits the tiles of one call."""

    def __init__(self, spec: Spec, q: Any, k: Any, v: Any, operands: Any):
        self.axes, self.dtype = spec.signature.axes, jnp.promote_types(q.dtype, jnp.float32)
        self.spec, self.arrays, self.terms = spec, operands, spec.terms(operands)
        self.geo = geometry(spec, q, k, v, operands)
        self.table = _blocks.table(
            self.terms.mask, self.geo.query, self.geo.key, self.geo.batch, self.geo.heads * self.geo.group
        )

    def strips(self, body: Callable, carry: Any) -> Any:
        """carry = body(step, indices, carry) for every strip of query rows."""
        return _loop(0, self.geo.strips, lambda n, c: body(*self.geo.strip(n), c), carry)

    def keys(self, step: Step, where: tuple[Any, Any, Any], body: Callable, carry: Any) -> Any:
        """carry = body(step, tile, masked, fresh, carry) for every key block of a strip, the full ones first.

        `fresh` is which pairs of the tile belong to no other tile, True for all.
        """
        batch, head, block = where
        index, full, partial = self.table
        row = (batch % index.shape[0], head if index.shape[1] > 1 else 0, block)
        fulls, partials = _uniform(full), _uniform(partial)
        all_full = fulls == self.geo.key.count
        if fulls is None or partials is None:
            fulls, partials = jnp.asarray(full)[row], jnp.asarray(partial)[row]

        def visit(masked):
            def one(n, carry):
                c = n if all_full else jnp.asarray(index)[row][n]
                here = step.along("s", self.geo.key.start(c), self.geo.key.block)
                fresh = True
                if masked and not self.geo.key.whole:
                    fresh = here.positions()[1] >= c * self.geo.key.block
                return body(here, masked, fresh, carry)

            return one

        carry = _loop(0, fulls, visit(False), carry)
        return _loop(fulls, fulls + partials, visit(True), carry)

    def tiles(self, step: Step, arrays: Any = None) -> list[jax.Array]:
        return [step.operand(a, x) for a, x in zip(self.arrays if arrays is None else arrays, self.axes, strict=True)]

    def scores(self, step: Step, masked: bool, fresh: Any) -> Callable:
        """Scores of a tile `[b, g, r, bt, bs]` as a function of query, key and operand tiles."""
        i, j = step.positions()

        def one(query, key, tiles):
            return self.spec.signature.fill(tiles).scores(query, key, i, j, masked, fresh)

        return _terms.lift(one, self.axes, ("bgr", "bg"))

    def weights(self, step: Step) -> Callable:
        """What the gates make of weights `[b, g, r, bt, bs]`, as a function of weights and operand tiles."""
        i, j = step.positions()
        return _terms.lift(lambda w, tiles: self.spec.signature.fill(tiles).weights(w, i, j), self.axes, ("bgr",))

    def pull_scores(self, step: Step, masked: bool, fresh: Any, *tiles: Any) -> tuple[jax.Array, Callable]:
        """`jax.vjp` of `scores`, with the products of its transpose in the order that XLA's CPU runs fastest."""
        i, j = step.positions()

        def one(query, key, tiles):
            terms = self.spec.signature.fill(tiles)
            if isinstance(terms.compare, Product):
                product, scale = _product(self.spec.precision), terms.compare.scale
                terms = dataclasses.replace(terms, compare=lambda q, k: product(q * scale, k))
            return terms.scores(query, key, i, j, masked, fresh)

        return jax.vjp(_terms.lift(one, self.axes, ("bgr", "bg")), *tiles)

    def pair(self, weights: jax.Array, values: jax.Array, subscripts: str) -> jax.Array:
        return jnp.einsum(subscripts, weights, values, precision=self.spec.precision)


@functools.cache
def _product(precision: Any) -> Callable:
    """q k' of `[bt, d]` and `[bs, d]`, whose transpose has the tile on the right of both products.

    XLA's CPU runs a product about twice as slow with a transposed tile on the left as with one on the right.
    """
    dot = functools.partial(jnp.matmul, precision=precision)
    product = jax.custom_vjp(lambda q, k: dot(q, k.T))
    product.defvjp(
        lambda q, k: (dot(q, k.T), (q, k)),
        lambda held, ds: (dot(ds, held[1]), jax.lax.optimization_barrier(dot(held[0].T, ds)).T),
    )
    return product


def _uniform(counts: Any) -> int | None:
    """The one value of a static array, None if there are several or they are known only at run time."""
    if isinstance(counts, np.ndarray) and counts.min() == counts.max():
        return int(counts.min())
    return None


def forward(spec: Spec, q: jax.Array, k: jax.Array, v: jax.Array, operands: Any) -> tuple[jax.Array, jax.Array]:
    """out `[b, t, h, e]` and lse `[b, t, h]`."""
    walk = _Walk(spec, q, k, v, operands)

    def strip(step, where, carry):
        query = step.rows(q).astype(walk.dtype)

        def tile(here, masked, fresh, state):
            key, value = (here.columns(x).astype(walk.dtype) for x in (k, v))
            tiles = walk.tiles(here)
            scores = walk.scores(here, masked, fresh)(query, key, tiles)
            top, p, shrink = online_softmax.exponentials(state, scores)
            p = jax.lax.optimization_barrier(p)  # else XLA computes the exponentials again for their sum
            out = walk.pair(walk.weights(here)(p, tiles), value, "bgrqk,bgke->bgrqe")
            return online_softmax.State(top, state.total * shrink + jnp.sum(p, -1), state.out * shrink[..., None] + out)

        state = walk.keys(step, where, tile, online_softmax.start(query.shape[:-1], v.shape[-1], walk.dtype))
        return tuple(
            step.put_rows(whole, part) for whole, part in zip(carry, online_softmax.finish(state), strict=True)
        )

    shape = (walk.geo.b, q.shape[1], walk.geo.h)
    return walk.strips(strip, (jnp.zeros((*shape, v.shape[-1]), spec.dtype), jnp.zeros(shape, walk.dtype)))


def _probabilities(scores: jax.Array, lse: jax.Array) -> jax.Array:
    return jnp.exp(scores - online_softmax.finite(lse)[..., None])


def _steady(x: jax.Array) -> Any:
    """A tangent of zeros."""
    return jnp.zeros_like(x) if jnp.issubdtype(x.dtype, jnp.floating) else np.zeros(x.shape, jax.dtypes.float0)


def tangent(spec: Spec, q: Any, k: Any, v: Any, operands: Any, out: Any, lse: Any, tangents: Any) -> tuple[Any, Any]:
    """Tangents of out and lse: with p the weights before the gates and W the gates, s and ds of a tile,

    dlse = sum p ds,  dout = sum (W(p ds) + dW(p)) v + W(p) dv  -  dlse out.
    """
    walk = _Walk(spec, q, k, v, operands)
    dq, dk, dv, doperands = tangents

    def strip(step, where, carry):
        query, dquery = (step.rows(x).astype(walk.dtype) for x in (q, dq))
        strip_lse = step.rows(lse)

        def tile(here, masked, fresh, state):
            key, dkey, value, dvalue = (here.columns(x).astype(walk.dtype) for x in (k, dk, v, dv))
            tiles = walk.tiles(here)
            dtiles = [
                _steady(x) if d is None else here.operand(d, a)
                for x, d, a in zip(tiles, doperands, walk.axes, strict=True)
            ]
            scores, ds = jax.jvp(walk.scores(here, masked, fresh), (query, key, tiles), (dquery, dkey, dtiles))
            p = _probabilities(scores, strip_lse)
            pds = p * ds
            gates = walk.weights(here)
            w, dw = jax.jvp(gates, (p, tiles), (pds, dtiles))
            add = walk.pair(dw, value, "bgrqk,bgke->bgrqe") + walk.pair(w, dvalue, "bgrqk,bgke->bgrqe")
            return state[0] + add, state[1] + jnp.sum(pds, -1)

        start = (jnp.zeros((*query.shape[:-1], v.shape[-1]), walk.dtype), jnp.zeros(query.shape[:-1], walk.dtype))
        dout, dlse = walk.keys(step, where, tile, start)
        dout = dout - dlse[..., None] * step.rows(out).astype(walk.dtype)
        return tuple(step.put_rows(whole, part) for whole, part in zip(carry, (dout, dlse), strict=True))

    return walk.strips(strip, (jnp.zeros(out.shape, out.dtype), jnp.zeros(lse.shape, lse.dtype)))


def backward(
    spec: Spec, q: Any, k: Any, v: Any, operands: Any, out: Any, lse: Any, dout: Any, dlse: Any, learn: Any
) -> Any:
    """Gradients of q, k, v and of the operands, None for those that do not `learn`.

    With p = exp(s - lse), w the weights after the gates, delta = dout . out - dlse:
    dv = w' dout,  dp = the gates' transpose of dout v',  ds = p (dp - delta),  and s pulls ds back to q, k, operands.
    """
    walk = _Walk(spec, q, k, v, operands)

    def strip(step, where, grads):
        query, upstream = (step.rows(x).astype(walk.dtype) for x in (q, dout))
        delta = jnp.sum(upstream * step.rows(out), -1) - step.rows(dlse)
        strip_lse = step.rows(lse)
        fresh_rows = True
        if not walk.geo.query.whole:
            fresh_rows = step.positions()[0] >= where[2] * walk.geo.query.block

        def tile(here, masked, fresh, carry):
            dquery, dk, dv, doperands = carry
            key, value = (here.columns(x).astype(walk.dtype) for x in (k, v))
            tiles = walk.tiles(here)
            scores, pull = walk.pull_scores(here, masked, fresh_rows & fresh, query, key, tiles)
            p = jax.lax.optimization_barrier(_probabilities(scores, strip_lse))
            w, gates_pull = jax.vjp(walk.weights(here), p, tiles)
            dvalue = jax.lax.optimization_barrier(walk.pair(upstream, w, "bgrqe,bgrqk->bgek"))
            dv = here.put_columns(dv, jnp.swapaxes(dvalue, -1, -2), add=True)
            dp, dtiles_gates = gates_pull(walk.pair(upstream, value, "bgrqe,bgke->bgrqk"))
            ds = jax.lax.optimization_barrier(p * (dp - delta[..., None]))
            dq, dkey, dtiles = pull(ds)
            dk = here.put_columns(dk, dkey, add=True)
            doperands = [
                here.put_operand(whole, axes, a + b) if whole is not None else None
                for whole, axes, a, b in zip(doperands, walk.axes, dtiles, dtiles_gates, strict=True)
            ]
            return dquery + dq, dk, dv, doperands

        dq, dk, dv, doperands = grads
        dquery, dk, dv, doperands = walk.keys(step, where, tile, (jnp.zeros_like(query), dk, dv, doperands))
        return step.put_rows(dq, dquery, add=True), dk, dv, doperands

    wide = lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32))
    grads = (wide(q), wide(k), wide(v), [wide(x) if y else None for x, y in zip(operands, learn, strict=True)])
    dq, dk, dv, doperands = walk.strips(strip, grads)
    cast = lambda x, like: x.astype(like.dtype)
    return (
        cast(dq, q),
        cast(dk, k),
        cast(dv, v),
        [x if x is None else cast(x, like) for x, like in zip(doperands, operands, strict=True)],
    )


# Tile sizes


_STEP = 2**20  # pairs a step works on, over heads and batch: fewer, larger steps wake the threads less often


def tile_sizes(group: int, masked: bool, width: int) -> tuple[int, int]:
    """Query and key rows of a tile, from timings of `python -m bench cpu` on two cores.

    Products run faster the larger the tile; a mask wastes less the smaller it is; a score that holds `width` numbers a
    pair wants as many times fewer pairs.  The query heads of a group lie side by side in one product.
    """
    side = 64 if width > 1 else 512 if masked else 1024
    return max(side // group, 16), side


def _even(length: int, block: int) -> int:
    """The block size at most `block` that divides `length` most evenly."""
    return -(-length // -(-length // block))


def _divisor(n: int, most: int) -> int:
    return max(x for x in range(1, n + 1) if n % x == 0 and (x <= most or x == 1))


def geometry(spec: Spec, q: Any, k: Any, v: Any, operands: Any) -> Geometry:
    """Sizes of the call's tiles; `spec.blocks` overrides the table."""
    (t, h), (s, g) = q.shape[1:3], k.shape[1:3]
    lengths = [x.shape[0] for x in (q, k, v)]
    lengths += [x.shape[0] for x, axes in zip(operands, spec.signature.axes, strict=True) if "b" in axes]
    terms = spec.terms(operands)
    width = tile_width(terms, q)
    rows, columns = spec.blocks or tile_sizes(h // g, terms.mask is not None, width)
    query, key = (_blocks.Tiling(n, _even(n, block)) for n, block in ((t, rows), (s, columns)))
    pairs = query.block * key.block * width
    heads = _divisor(g, _STEP // (pairs * (h // g)))
    batch = 1
    if heads == g and (query.count * key.count == 1 or not _blocks.ragged(terms.mask)):
        batch = _divisor(math.gcd(*(n for n in lengths if n > 1)) or 1, _STEP // (pairs * h))
    return Geometry(max(lengths), h, g, query, key, batch, heads)


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
