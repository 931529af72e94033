"""Attention a strip of query rows at a time, in plain differentiable JAX: whole rows of scores, never all of them.

What no query of a strip sees counts as 0 there, and so does a query that sees nothing: whatever stands in them, NaN
included, reaches no result and no gradient.

The twin of the fused kernels (their higher derivatives are derivatives of this), and the way of the normalisers that
have no online form.  Of those that are elementwise a strip is cut into blocks of keys, whose results are added up, and
blocks that the mask hides are left out.  `jax.checkpoint` around a strip or a block keeps the memory of any derivative
linear in t + s.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec
from jax.typing import DTypeLike

from jattn import _terms
from jattn._call.problem import Problem, reduce, tile_width
from jattn._terms import AnyArray, Operand, Signature, Terms
from jattn._terms.block_tables import Tiling, answers
from jattn._terms.moved import moved
from jattn._terms.rows import THRESHOLD
from jattn.backends.contract import Cut, Precision
from jattn.backends.steps import Step
from jattn.masks import Mask
from jattn.normalizers import Normalizer

_KEPT = jax.checkpoint_policies.save_only_these_names(THRESHOLD)


class StripSize(NamedTuple):
    """How large a strip is: it has some query rows of all batch elements and heads, which no loop takes one after the
    other, since in a mesh each device has some of them."""

    scores: int = 2**20
    """As many as it may have."""
    rows: int = 16
    """As many as it has even so: scores of so few take about the memory of the keys."""
    blocks: int = 8
    """Into as many its keys are cut where it may be: more skip more, but each adds to gradients as long as the keys."""
    keys: int = 256
    """As many a block has at least."""


_STRIP_SIZE = StripSize()


def rows(
    signature: Signature,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    operands: Sequence[AnyArray],
    finish: Callable,
    extra: object = None,
    strip: StripSize = _STRIP_SIZE,
    summed: bool = False,
) -> Any:
    """Any function of whole rows of scores, for all rows.

    `finish(terms, extra, scores [bt, s], value [s, e], i, j)` of one head returns a pytree of arrays `[bt, ..]`; the
    result has them as `[b, t, h, ..]`.  `extra` is a term or a pytree of them, cut to the tile as the terms are;
    `strip` says how large a strip is.  `summed`: what it returns of a row is the sum over blocks of its keys, 0 of keys
    that are all hidden.
    """
    more, extra_signature = _terms.split(extra)
    strip = strip if summed else strip._replace(blocks=1)
    fn: Any = functools.partial(_rows, signature, extra_signature, finish, strip)
    placed = jax.typeof(q).sharding
    if AxisType.Explicit in placed.mesh.axis_types:  # loops over sharded arrays are for the partitioner to place
        fn = jax.sharding.auto_axes(fn, axes=placed.mesh.explicit_axes, out_sharding=PartitionSpec(*placed.spec[:3]))
    return fn(q, k, v, operands, more)


def _rows(
    signature: Signature,
    extra_signature: Signature,
    finish: Callable,
    most: StripSize,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    operands: Sequence[AnyArray],
    more: Sequence[AnyArray],
) -> Any:
    own, operands = len(operands), [*operands, *more]
    axes = (*signature.axes, *extra_signature.axes)
    lengths = [x.shape[0] for x in (q, k, v)] + [x.shape[0] for x, a in zip(operands, axes, strict=True) if "b" in a]
    b, (t, h), (s, g) = max(lengths), q.shape[1:3], k.shape[1:3]
    if 0 in (b, t):
        sizable = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct([max(n, 1) for n in x.shape], x.dtype), (q, k, v, operands[:own], more)
        )
        shapes = jax.eval_shape(functools.partial(_rows, signature, extra_signature, finish, most), *sizable)
        return jax.tree.map(lambda x: jnp.zeros((b, t, *x.shape[2:]), x.dtype), shapes)
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    terms = signature.fill(operands[:own])
    masked, width = terms.mask is not None, tile_width(terms, q)
    query, key = _tilings(most, b * h if isinstance(b, int) else h, t, s, width)  # of `jax.export` b may be a symbol
    whole = Step({"b": (0, b), "g": (0, g), "h": (0, h), "s": (0, s)}, h // g)
    columns = [whole.columns(x).astype(dtype) for x in (k, v)]
    visited = None  # which blocks of keys a strip visits, where there are several
    if key.count > 1:
        named = signature.fill([Operand(*x) for x in zip(operands[:own], signature.axes, strict=True)])
        visited = answers(moved(named), query, key).some.any((0, 1))

    @functools.partial(jax.checkpoint, policy=_KEPT)
    def tile(n: int | jax.Array, c: int | jax.Array, columns: list[jax.Array]):
        step = whole.along("t", query.start(n), query.block)
        fresh: Any = True
        if visited is not None:
            step = step.along("s", key.start(c), key.block)
            columns = [jax.lax.dynamic_slice_in_dim(x, key.start(c), key.block, 2) for x in columns]
        i, j = step.positions()
        if not key.whole:
            fresh = jnp.broadcast_to(j >= c * key.block, (query.block, key.block))
        tiles = [step.operand(x, a) for x, a in zip(operands, axes, strict=True)]
        arrays = (step.rows(q).astype(dtype), *columns)

        def compute(arrays: Iterable[jax.Array], tiles: list[jax.Array]):
            if masked:
                arrays, tiles[:own] = _hidden_as_zero(signature, arrays, tiles[:own], i, j)

            def head(query: jax.Array, key: jax.Array, value: jax.Array, tiles: list[jax.Array]):
                terms, cut = signature.fill(tiles[:own]), extra_signature.fill(tiles[own:])
                return finish(terms, cut, terms.scores(query, key, i, j, fresh=fresh), value, i, j)

            by_group = _terms.lift(head, axes, ("bgr", "bg", "bg"))(*arrays, tiles)
            return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(b, h, *x.shape[3:]), 2, 1), by_group)

        if visited is None:
            return compute(arrays, tiles)
        # what is cut goes in, not what it is cut from: all that goes in is kept, or added to, for each block
        return jax.lax.cond(jnp.asarray(visited)[n, c], compute, functools.partial(_zeros, compute), arrays, tiles)

    def strip(n: int | jax.Array, columns: list[jax.Array]):
        if visited is None:
            return tile(n, 0, columns)
        blocks = jax.lax.map(lambda c: tile(n, c, columns), jnp.arange(key.count))
        return jax.tree.map(lambda x: jnp.sum(x, 0), blocks)

    if query.count == 1:
        return strip(0, columns)
    strips = jax.lax.map(lambda n: strip(n, columns), jnp.arange(query.count))
    return jax.tree.map(lambda x: _join(x, t), strips)


def _tilings(most: StripSize, heads: int, t: int, s: int, width: int) -> tuple[Tiling, Tiling]:
    """Strips of queries and blocks of keys, of so many heads over all batch elements."""
    key = Tiling(s, max(1, min(s, max(most.keys, -(-s // most.blocks)) if most.blocks > 1 else s)))
    return Tiling(t, min(t, max(most.rows, most.scores // max(1, heads * key.block * width)))), key


def cut(b: int, h: int, t: int, s: int, width: int, mask: Mask | None, known: bool) -> Cut | None:
    """How the keys of an elementwise normaliser are cut; None where rows stay whole.  A block that the mask leaves to
    any head is computed for all of them."""
    query, key = _tilings(_STRIP_SIZE, b * h, t, s, width)
    if key.count == 1:
        return None
    tile = query.block, key.block
    if not known:
        return Cut(tile, None)
    answer = answers(mask, query, key)
    some, every = np.asarray(answer.some).any((0, 1)), np.asarray(answer.every).all((0, 1))
    full, visited = b * h * int((some & every).sum()), b * h * int(some.sum())
    return Cut(tile, (b * h * some.size - visited, visited - full, full))


def _zeros(compute: Callable[..., Any], arrays: Iterable[jax.Array], tiles: list[jax.Array]) -> Any:
    """0 for all that `compute` gives of the arrays and tiles.  It is made of all of them, so that inside
    `jax.shard_map` it varies over the axes that any of them varies over."""
    shapes = jax.eval_shape(compute, arrays, tiles)
    zero = functools.reduce(jnp.add, (jnp.zeros_like(x, shape=(), dtype=jnp.float32) for x in (*arrays, *tiles)))
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype) + zero.astype(x.dtype), shapes)


def _hidden_as_zero(
    signature: Signature, arrays: Iterable[jax.Array], tiles: list[jax.Array], i: jax.Array, j: jax.Array
) -> tuple[Any, list[Any]]:
    """A strip's query `[b, g, r, bt, d]`, key and value `[b, g, s, ..]` with 0 for a query that sees nothing and for a
    key that no query of the strip sees; and the operands' tiles, with 1 there where they are not finite: a mod may
    divide by them.
    """
    terms = signature.fill([Operand(*x) for x in zip(tiles, signature.axes, strict=True)])
    rows, columns = _seen(terms, i, j)
    query, key, value = arrays
    # a key stays where some query head of the group sees it, since all of them read it
    shown = jnp.any(columns, axis=2)[..., None]
    arrays = [jnp.where(x, y, 0) for x, y in ((rows[..., None], query), (shown, key), (shown, value))]

    def cleaned(x: Operand) -> Operand:
        if not jnp.issubdtype(x.array.dtype, jnp.floating) or not {*"ts"} & {*x.axes}:
            return x
        seen = rows[..., None] if "t" in x.axes else columns[..., None, :]
        if "t" in x.axes and "s" in x.axes:
            seen &= columns[..., None, :]
        seen = seen if "h" in x.axes else jnp.any(seen, axis=(1, 2))
        seen = seen if "b" in x.axes else jnp.any(seen, axis=0)
        seen = seen.reshape(*seen.shape, *[1] * (x.array.ndim - seen.ndim))
        return Operand(jnp.where(jnp.isfinite(x.array) | seen, x.array, 1), x.axes)

    rest = dataclasses.replace(terms, mask=None)
    rest = jax.tree.map(cleaned, rest, is_leaf=lambda x: isinstance(x, Operand))
    return arrays, _terms.split(dataclasses.replace(rest, mask=terms.mask))[0]


def _seen(terms: Terms, i: jax.Array, j: jax.Array) -> list[jax.Array]:
    """Which rows of a strip see a key, `[b|1, g|1, r|1, bt]`, and which keys are seen by a row, `[b|1, g|1, r|1,
    s]`."""
    tiles, signature = _terms.split(moved(terms))

    def head(tiles: list[jax.Array]):
        live = signature.fill(tiles)(i, j)
        return jnp.any(live, axis=1), jnp.any(live, axis=0)

    batch, heads = (any(a in axes for axes in signature.axes) for a in "bh")
    seen = _terms.lift(head, signature.axes, ())(tiles)
    return [x.reshape(x.shape[0] if batch else 1, *(x.shape[-3:-1] if heads else (1, 1)), x.shape[-1]) for x in seen]


def _join(strips: jax.Array, t: int) -> jax.Array:
    """`[strips, b, bt, ..]` to `[b, t, ..]`; the last strip was moved back to fit and repeats rows."""
    count, b, block = strips.shape[:3]
    left = t - (count - 1) * block
    first = jnp.moveaxis(strips[:-1], 0, 1).reshape(b, -1, *strips.shape[3:])
    return jnp.concatenate([first, strips[-1, :, block - left :]], axis=1)


def output(
    terms: Terms,
    scores: jax.Array,
    weight: jax.Array,
    value: jax.Array,
    i: jax.Array,
    j: jax.Array,
    precision: Precision,
    dtype: DTypeLike,
) -> jax.Array:
    """out `[bt, e]` of the weights before the gates, which are 0 where scores are -inf; 0 for a row that is -inf
    throughout, whatever the values."""
    weight = jnp.where(jnp.isneginf(scores), 0, weight)
    out = jnp.matmul(terms.weights(weight, i, j, live=~jnp.isneginf(scores)), value, precision=precision)
    empty = jnp.all(jnp.isneginf(scores), axis=-1, keepdims=True)
    return jnp.where(empty, 0, out).astype(dtype)


def attention(problem: Problem, strip: StripSize = _STRIP_SIZE) -> jax.Array:
    """out `[b, t, h, e]` for normalisers without an online form, which see whole rows unless they are elementwise."""
    q, k, v, operands, signature = reduce(problem)
    normalizer = problem.normalizer.bound(*problem.origin.indices(q.shape[0], q.shape[2]))
    dtype = jnp.promote_types(q.dtype, jnp.float32) if normalizer.elementwise else problem.query.dtype

    def finish(terms: Terms, normalizer: Normalizer, scores: jax.Array, value: jax.Array, i: jax.Array, j: jax.Array):
        return output(terms, scores, normalizer(scores), value, i, j, problem.precision, dtype)

    out = rows(signature, q, k, v, operands, finish, normalizer, strip, normalizer.elementwise)
    return out.astype(problem.query.dtype)
