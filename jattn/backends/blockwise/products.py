"""The products of one tile, each written in the order that XLA's CPU runs fastest.

A tile's query side is `[b, g, r, bt, d]`.  Its key side is held in one of two ways, which is all that the classes below
differ in:

- `PerHead`: `[b, g, bs, d]`, a copy with the heads in front;
- `Joined`: `[b, bs, g * d]`, as it lies in memory, for few query rows.  XLA's products want a head's keys side by side,
  so they copy all keys; a query that is zero in the places of the other heads needs no copy, and computes g times as
  much.  Up to some dozen query rows the copy takes longer.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jattn.backends.pages import Paged
from jattn.backends.steps import KEY, Step

_TERMS = 8  # products that one elementwise sum has at most


def _still(x: jax.Array) -> jax.Array:
    """x as an array of its own: XLA fuses copies with what comes next, and then walks memory in the wrong order."""
    return jax.lax.optimization_barrier(x)


def _turned(x: jax.Array, source: int, destination: int) -> jax.Array:
    """`jnp.moveaxis`, done once: XLA would turn the product around in its place, or each of its users."""
    return _still(jnp.moveaxis(_still(x), source, destination))


@dataclasses.dataclass(frozen=True)
class PerHead:
    """Key tiles `[b, g, bs, d]`.

    XLA's CPU multiplies `[m, k]` by `[k, n]` and transposes what does not lie so.  `narrow` says that a tile of scores
    is smaller than a tile of keys: then scores are transposed, else keys are.
    """

    precision: Any
    narrow: bool

    def key(self, step: Step, array: jax.Array | Paged, dtype: DTypeLike, seen: jax.Array | None) -> jax.Array:
        """The key tile of `array`; keys that are not `seen` `[b|1, g|1, bs]` are 0, None for all are."""
        x = step.columns(array).astype(dtype)
        return _still(x if seen is None else jnp.where(seen[..., None], x, 0))

    def put(self, step: Step, array: jax.Array, tile: jax.Array, add: bool) -> jax.Array:
        """`array` with a key tile put in its place, or added."""
        return step.put_columns(array, tile, add)

    def scores(self, query: jax.Array, key: jax.Array) -> jax.Array:
        """query . key of every pair."""
        if self.narrow:
            return _turned(self._einsum("bgkd,bgrqd->bgkrq", key, query), 2, -1)
        return self._einsum("bgrqd,bgkd->bgrqk", query, key)

    def rows(self, weights: jax.Array, key: jax.Array) -> jax.Array:
        """Of every query, the sum of weight * key."""
        return self._einsum("bgrqk,bgke->bgrqe", weights, key)

    def columns(self, weights: jax.Array, query: jax.Array) -> jax.Array:
        """Of every key, the sum of weight * query."""
        if self.narrow:
            return _still(self._einsum("bgrqk,bgrqe->bgke", weights, query))
        return jnp.swapaxes(_still(self._einsum("bgrqe,bgrqk->bgek", query, weights)), -1, -2)

    def _einsum(self, subscripts: str, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.einsum(subscripts, x, y, precision=self.precision)


@dataclasses.dataclass(frozen=True)
class Joined:
    """Key tiles `[b, bs, g * d]`; the methods are those of `PerHead`."""

    precision: Any

    def key(self, step: Step, array: jax.Array | Paged, dtype: DTypeLike, seen: jax.Array | None) -> jax.Array:
        x = step.part(array, KEY).astype(dtype)
        if seen is not None:
            x = jnp.where(jnp.swapaxes(seen, -1, -2)[..., None], x, 0)
        return x.reshape(*x.shape[:2], -1)

    def put(self, step: Step, array: jax.Array, tile: jax.Array, add: bool) -> jax.Array:
        return step.put(array, KEY, tile.reshape(*tile.shape[:2], *array.shape[2:]), add)

    def scores(self, query: jax.Array, key: jax.Array) -> jax.Array:
        scores = _turned(self._einsum("bkx,bnx->bkn", key, _spread(query)), 1, 2)
        return scores.reshape(*query.shape[:-1], -1)

    def rows(self, weights: jax.Array, key: jax.Array) -> jax.Array:
        return _gathered(self._einsum("bnk,bkx->bnx", _flat(weights), key), weights.shape[:-1])

    def columns(self, weights: jax.Array, query: jax.Array) -> jax.Array:
        b, g, r, t, d = query.shape
        if r * t > _TERMS:
            return self._einsum("bnk,bnx->bkx", _flat(weights), _spread(query))
        # a sum of so few products is written as fast as memory takes it
        weights = jnp.moveaxis(weights.reshape(b, g, r * t, -1), -1, 1)[..., None]  # [b, bs, g, r * t, 1]
        query = query.reshape(b, 1, g, r * t, d)
        total = functools.reduce(jnp.add, (weights[..., n, :] * query[..., n, :] for n in range(r * t)))
        return total.reshape(b, total.shape[1], -1)

    def _einsum(self, subscripts: str, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.einsum(subscripts, x, y, precision=self.precision)


def _flat(x: jax.Array) -> jax.Array:
    """`[b, g, r, bt, ..]` -> `[b, g * r * bt, ..]`."""
    return x.reshape(x.shape[0], -1, *x.shape[4:])


def _own(groups: int) -> jax.Array:
    """`[g, 1, 1, g, 1]`: whether a query's head is the key's."""
    return jnp.eye(groups, dtype=bool)[:, None, None, :, None]


def _spread(x: jax.Array) -> jax.Array:
    """`[b, g, r, bt, d]` -> `[b, g * r * bt, g * d]`, 0 in the places of the other heads."""
    return _flat(jnp.where(_own(x.shape[1]), x[..., None, :], 0).reshape(*x.shape[:4], -1))


def _gathered(x: jax.Array, rows: tuple[int, ...]) -> jax.Array:
    """`[b, g * r * bt, g * e]` -> `[b, g, r, bt, e]`: of each row, the places of its own head."""
    x = x.reshape(*rows, rows[1], -1)
    return jnp.sum(jnp.where(_own(rows[1]), x, 0), axis=-2)
