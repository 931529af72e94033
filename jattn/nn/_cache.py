"""The keys and values that a layer has seen: what decoding a token at a time remembers."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Int


class Cache(NamedTuple):
    """Keys and values of up to n positions, projected, normalised and rotated; fixed arrays, so that it can be carried
    through `jax.jit`, `jax.lax.scan` and `jax.vmap`.

    key, value: `[.., n, g, d]`, with g key and value heads and any number of batch axes.
    length: `[..]`, of how many positions each example of the batch holds keys; what comes after them is not looked at.

    To shorten is to forget: after prompts of several lengths, padded at their ends, were decoded at once,
    `cache._replace(length=lengths)` goes on from the end of each.
    """

    key: Float[Array, "*b n g d"]
    value: Float[Array, "*b n g d"]
    length: Int[Array, "*b"]

    @property
    def room(self) -> int:
        """n."""
        return self.key.shape[-3]

    def positions(self, t: int) -> Int[Array, "*b t"]:
        """Those of the next t tokens."""
        return self.length[..., None] + jnp.arange(t, dtype=self.length.dtype)


def empty(lead: tuple[int, ...], n: int, heads: int, width: int, dtype: Any) -> Cache:
    """A cache of length 0.  Its arrays are buffers apart, so that it can be donated."""
    key, value = (jnp.zeros((*lead, n, heads, width), dtype) for _ in range(2))
    return Cache(key, value, jnp.zeros(lead, jnp.int32))


def append(cache: Cache, key: Any, value: Any) -> Cache:
    """The cache with the keys and values of the next t positions; those past its end are dropped."""
    t = key.shape[-3]

    def put(held, new, first):
        at = first + jnp.arange(t, dtype=first.dtype)
        return held.at[at].set(new.astype(held.dtype), mode="drop", indices_are_sorted=True, unique_indices=True)

    for _ in cache.length.shape:
        put = jax.vmap(put)
    put_both = lambda held, new: put(held, new, cache.length)
    return Cache(put_both(cache.key, key), put_both(cache.value, value), cache.length + t)


def check(cache: Any, lead: tuple[int, ...], heads: int, width: int) -> None:
    """Raises unless the cache is one of this layer and batch."""
    if not isinstance(cache, Cache):
        raise TypeError(f"cache must be made by the layer's cache() or read(), got {type(cache).__name__}")
    wanted = (*lead, cache.room, heads, width) if cache.key.ndim >= 3 else None
    if not cache.key.shape == cache.value.shape == wanted or cache.length.shape != lead:
        raise ValueError(
            f"cache must have key and value [.., n, {heads}, {width}] and length [..] with the batch axes {list(lead)}"
            f" of x, got key {list(cache.key.shape)}, value {list(cache.value.shape)}, length"
            f" {list(cache.length.shape)}"
        )


def check_room(cache: Cache, t: int) -> None:
    """Raises where t more positions are known not to fit."""
    if isinstance(cache.length, Tracer):
        return
    longest = int(jnp.max(cache.length))
    if longest + t > cache.room:
        raise ValueError(
            f"the cache has room for n = {cache.room} positions and holds {longest}: {t} more do not fit;"
            " make a longer one with layer.cache(n, batch)"
        )
