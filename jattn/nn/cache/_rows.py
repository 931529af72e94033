"""Caches whose examples each have rows of their own: all positions in a row, or a window that slides over them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jattn.nn.cache._record import Cache, Rows, rows_of, with_rows


def append(cache: Cache, new: Rows, taken: Int[Array, "*b"] | None) -> Cache:
    """The cache with the rows of the next t positions, of which `taken` are real; those past its end are dropped."""
    t, room = new.key.shape[-3], cache.key.shape[-3]
    start = cache.length if cache.first is None else cache.length - cache.first
    steps = jnp.arange(t, dtype=start.dtype)
    at = start[..., None] + steps
    if taken is not None:
        at = jnp.where(steps < taken[..., None], at, room + steps)  # past the end, and no two at one place

    def put(held: Array, new: Array, at: Array) -> Array:
        return held.at[at].set(new.astype(held.dtype), mode="drop", indices_are_sorted=True, unique_indices=True)

    for _ in cache.length.shape:
        put = jax.vmap(put)
    rows = jax.tree.map(lambda held, new: put(held, new, at), rows_of(cache), new)
    return with_rows(cache, rows)._replace(length=cache.length + (t if taken is None else taken))


def with_room(cache: Cache, t: int, left: int) -> Cache:
    """A cache that slides with room for t more positions, where queries see no more than `left` before their own.

    It is moved only where the room of some example is used up, so that a step costs what it writes.  More positions
    than the slack has room for make it longer, for the one step.
    """
    longer = max(0, left + t - cache.room)
    if longer:
        lead = cache.length.ndim
        pad = lambda x: jnp.pad(x, ((0, 0),) * lead + ((0, longer),) + ((0, 0),) * (x.ndim - lead - 1))
        cache = with_rows(cache, jax.tree.map(pad, rows_of(cache)))
    assert cache.first is not None
    used_up = jnp.any(cache.length - cache.first + t > cache.room)
    return jax.lax.cond(used_up, lambda x: slid(x, left), lambda x: x, cache)


def slid(cache: Cache, left: int, room: int | None = None) -> Cache:
    """The cache from the first position on that queries after its end can see, and room for as many as before."""
    assert cache.first is not None
    first = jnp.maximum(cache.first, cache.length - left)
    places = jnp.arange(cache.room if room is None else room, dtype=first.dtype)
    return moved(cache, places + (first - cache.first)[..., None])._replace(first=first)


def moved(cache: Cache, rows: Int[Array, "*b n"]) -> Cache:
    """The cache with these of its rows."""

    def take(held: Array, rows: Array) -> Array:
        return jnp.take(held, rows, axis=0, mode="clip")

    for _ in cache.length.shape:
        take = jax.vmap(take)
    return with_rows(cache, jax.tree.map(lambda x: take(x, rows), rows_of(cache)))


def put(cache: Cache, new: Rows, at: Int[Array, "*b k"]) -> Cache:
    """The cache with these in its rows `at`."""

    def one(held: Array, new: Array, at: Array) -> Array:
        return held.at[at].set(new, mode="drop")

    for _ in cache.length.shape:
        one = jax.vmap(one)
    return with_rows(cache, jax.tree.map(lambda held, new: one(held, new, at), rows_of(cache), new))
