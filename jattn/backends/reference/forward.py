"""The definition of attention, in a page: one head at a time, all of `[t, s]` in memory, lifted with `jax.vmap`.

    score  = score(query, key)                        [t, s]
    score  = -inf where the mask is False             and it stays -inf
    score  = mod(score, i, j)                         for each mod in order
    weight = normalizer(score)                        each row over s; a score of -inf gives 0
    weight = gate(weight, i, j)                       for each gate in order
    out    = weight @ value                           [t, e]
    lse    = log(sum over s of exp(score))            [t], softmax only

A sink is one more logit in the softmax's denominator, with value 0.  What nobody sees reaches nothing: a query that
sees no key and a key that no query sees count as 0, whatever stands there.  Everything else is compared with this, in
float64.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from jattn import _terms
from jattn._call.problem import Problem
from jattn._terms.rows import logsumexp, with_sink


def _head(
    problem: Problem, live: jax.Array, query: jax.Array, key: jax.Array, value: jax.Array
) -> tuple[Any, Any, Any]:
    """out `[t, e]`, lse `[t]` and weights `[t, s]` of one head; the problem's operands are cut to it."""
    i, j = _positions(problem, live.shape)
    score = jnp.where(live, problem.score(query, key), -jnp.inf)
    for mod in (*problem.mods, *problem.normalizer.mods):
        hidden = jnp.isneginf(score)
        score = jnp.where(hidden, -jnp.inf, mod(jnp.where(hidden, 0, score), i, j))
    lse = logsumexp(score)
    weight = jnp.where(jnp.isneginf(score), 0, problem.normalizer(score))
    if problem.sinks is not None:
        share, lse = with_sink(lse, problem.sinks)
        weight = weight * share[:, None]
    for gate in problem.gates:
        weight = jnp.where(jnp.isneginf(score), 0, gate(weight, i, j))
    empty = jnp.all(jnp.isneginf(score), axis=1, keepdims=True)
    weight = jnp.where(empty, 0, weight)
    out = jnp.matmul(weight, value, precision=problem.precision)
    return jnp.where(empty, 0, out), lse, weight


def _positions(problem: Problem, shape: tuple[_terms.Size, ...]) -> tuple[jax.Array, jax.Array]:
    t, s = shape
    i, j = jnp.arange(t, dtype=jnp.int32)[:, None], jnp.arange(s, dtype=jnp.int32)[None]
    return problem.origin.offsets.at(i, j)


def attention(problem: Problem) -> tuple[jax.Array, jax.Array, jax.Array]:
    """out `[b, t, h, e]`, lse `[b, t, h]` and weights `[b, h, t, s]`."""
    placed = jax.typeof(problem.query).sharding
    if AxisType.Explicit not in placed.mesh.axis_types:
        return _attention(problem)
    b, t, h = placed.spec[:3]
    of_rows = PartitionSpec(b, t, h)
    arrays, tree = jax.tree.flatten(problem)
    whole = lambda *arrays: _attention(jax.tree.unflatten(tree, arrays))
    specs = of_rows, of_rows, PartitionSpec(b, h, t)
    fn: Any = jax.sharding.auto_axes(whole, axes=placed.mesh.explicit_axes, out_sharding=specs)
    return fn(*arrays)


def _attention(problem: Problem) -> tuple[jax.Array, jax.Array, jax.Array]:
    sizes, dtype = problem.sizes, problem.query.dtype
    heads_first = [
        jnp.swapaxes(x, 1, 2).astype(jnp.promote_types(x.dtype, jnp.float32))
        for x in (problem.query, problem.key, problem.value)
    ]
    query, key, value = heads_first
    group = sizes["h"] // sizes["g"]
    query = query.reshape(query.shape[0], sizes["g"], group, *query.shape[2:])
    arrays, signature = _terms.split(_pieces(problem).bound(*problem.origin.indices(sizes["b"], sizes["h"])))
    tiles = [_whole(x, axes, group) for x, axes in zip(arrays, signature.axes, strict=True)]

    def head(query: jax.Array, key: jax.Array, value: jax.Array, tiles: list[jax.Array]):
        shape = (query.shape[0], key.shape[0])
        mask = signature.fill(tiles).mask
        if mask is None:
            return _head(signature.fill(tiles), jnp.ones(shape, bool), query, key, value)
        live = mask(*_positions(signature.fill(tiles), shape))
        rows, columns = jnp.any(live, axis=1, keepdims=True), jnp.any(live, axis=0)[:, None]
        query, key, value = (jnp.where(x, y, 0) for x, y in ((rows, query), (columns, key), (columns, value)))
        tiles = [_seen(x, axes, rows, columns.T) for x, axes in zip(tiles, signature.axes, strict=True)]
        return _head(signature.fill(tiles), live, query, key, value)

    out, lse, weight = _terms.lift(head, signature.axes, ("bgr", "bg", "bg"))(query, key, value, tiles)
    join = lambda x: x.reshape(x.shape[0], sizes["h"], *x.shape[3:])
    return jnp.swapaxes(join(out), 1, 2).astype(dtype), jnp.swapaxes(join(lse), 1, 2), join(weight)


def _pieces(problem: Problem) -> Problem:
    """The problem without its arrays."""
    return dataclasses.replace(problem, query=None, key=None, value=None)


def _seen(tile: jax.Array, axes: str, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """An operand's tile `[t|1, s|1, ..]` with 1 where it is not finite in a row or a column that sees, or is seen by,
    nothing."""
    if not jnp.issubdtype(tile.dtype, jnp.floating) or not {*axes} & {*"ts"}:
        return tile
    seen = (rows if "t" in axes else True) & (columns if "s" in axes else jnp.ones((1, 1), bool))
    return jnp.where(jnp.isfinite(tile) | seen.reshape(*seen.shape, *[1] * (tile.ndim - 2)), tile, 1)


def _whole(array: jax.Array, axes: str, group: int) -> jax.Array:
    """All of an operand as its term sees it: heads split in `g r`, positions as `[t|1, s|1]`."""
    lead, rest = array.shape[: len(axes)], array.shape[len(axes) :]
    shape = []
    for axis, size in zip(axes, lead, strict=True):
        shape += {"b": [size], "h": [size // group, group]}.get(axis, [])
    if "t" in axes or "s" in axes:
        shape += [lead[axes.index(a)] if a in axes else 1 for a in "ts"]
    return _terms.wide(array).reshape(*shape, *rest)
