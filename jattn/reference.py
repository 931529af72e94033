"""The definition of attention, in a page: one head at a time, all of `[t, s]` in memory, lifted with `jax.vmap`.

    score  = score(query, key)                        [t, s]
    score  = mod(score, i, j)                         for each mod in order
    score  = -inf where the mask is False
    weight = normalizer(score)                        each row over s; a row of -inf gives 0
    weight = gate(weight, i, j)                       for each gate in order
    out    = weight @ value                           [t, e]
    lse    = log(sum over s of exp(score))            [t], softmax only

A sink is one more logit in the softmax's denominator, with value 0.  Everything else is compared with this, in float64.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jattn import _terms
from jattn._problem import Problem
from jattn.normalizers import logsumexp, with_sink


def _head(problem: Problem, query: jax.Array, key: jax.Array, value: jax.Array, sink: Any) -> tuple[Any, Any, Any]:
    """out `[t, e]`, lse `[t]` and weights `[t, s]` of one head; the problem's operands are cut to it."""
    i = jnp.arange(query.shape[0], dtype=jnp.int32)[:, None]
    j = jnp.arange(key.shape[0], dtype=jnp.int32)[None]
    score = problem.score(query, key)
    for mod in (*problem.mods, *problem.normalizer.mods):
        score = mod(score, i, j)
    if problem.mask is not None:
        score = jnp.where(problem.mask(i, j), score, -jnp.inf)
    lse = logsumexp(score)
    weight = problem.normalizer(score)
    if sink is not None:
        share, lse = with_sink(lse, sink)
        weight = weight * share[:, None]
    for gate in problem.gates:
        weight = gate(weight, i, j)
    return jnp.matmul(weight, value, precision=problem.precision), lse, weight


def attention(problem: Problem) -> tuple[jax.Array, jax.Array, jax.Array]:
    """out `[b, t, h, e]`, lse `[b, t, h]` and weights `[b, h, t, s]`."""
    sizes, dtype = problem.sizes, problem.query.dtype
    heads_first = [
        jnp.swapaxes(x, 1, 2).astype(jnp.promote_types(x.dtype, jnp.float32))
        for x in (problem.query, problem.key, problem.value)
    ]
    query, key, value = heads_first
    group = sizes["h"] // sizes["g"]
    query = query.reshape(query.shape[0], sizes["g"], group, *query.shape[2:])
    arrays, signature = _terms.split(_pieces(problem).bound(sizes["b"], sizes["h"]))
    tiles = [_whole(x, axes, group) for x, axes in zip(arrays, signature.axes, strict=True)]

    def head(query, key, value, tiles):
        cut = signature.fill(tiles)
        return _head(cut, query, key, value, cut.sinks)

    out, lse, weight = _terms.lift(head, signature.axes, ("bgr", "bg", "bg"))(query, key, value, tiles)
    join = lambda x: x.reshape(x.shape[0], sizes["h"], *x.shape[3:])
    return jnp.swapaxes(join(out), 1, 2).astype(dtype), jnp.swapaxes(join(lse), 1, 2), join(weight)


def _pieces(problem: Problem) -> Problem:
    """The problem without its arrays."""
    return dataclasses.replace(problem, query=None, key=None, value=None)


def _whole(array: jax.Array, axes: str, group: int) -> jax.Array:
    """All of an operand as its term sees it: heads split in `g r`, positions as `[t|1, s|1]`."""
    lead, rest = array.shape[: len(axes)], array.shape[len(axes) :]
    shape = []
    for axis, size in zip(axes, lead, strict=True):
        shape += {"b": [size], "h": [size // group, group]}.get(axis, [])
    if "t" in axes or "s" in axes:
        shape += [lead[axes.index(a)] if a in axes else 1 for a in "ts"]
    return _terms.wide(array).reshape(*shape, *rest)
