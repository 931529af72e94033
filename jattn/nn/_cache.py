"""The keys and values that a layer has seen: what decoding a token at a time remembers."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int


class Cache(NamedTuple):
    """Keys and values of up to n positions, projected, normalised and rotated (Shazeer 2019).

    Layers make it (`cache`, `read`) and return it (`decode`).  Its arrays keep their shapes, so that it can be carried
    through `jax.jit`, `jax.lax.scan` and `jax.vmap`.

    To shorten is to forget: after prompts of several lengths, padded at their ends, were decoded at once,
    `cache._replace(length=lengths)` goes on from the end of each.

    Args:
      key: `[.., n, g, d]`, with g key and value heads and any number of batch axes, floating-point.
      value: `[.., n, g, e]`, of the same dtype.
      length: `[..]` int32, how many positions each example of the batch has had; what comes after them is not looked
        at.
      first: `[..]` int32, which position is the first in the arrays, where those that no window reaches any more make
        room (`layer.cache(n, batch, slack=..)`); None where all positions are kept.

    >>> import jax.numpy as jnp, jattn
    >>> from flax import nnx
    >>> layer = jattn.nn.MultiHeadAttention(32, 4, mask=jattn.masks.causal(), rngs=nnx.Rngs(0))
    >>> _, cache = layer.decode(jnp.ones((2, 5, 32)), layer.cache(100, batch=2))
    >>> cache.room, cache.length.tolist()
    (100, [5, 5])
    >>> cache = cache._replace(length=jnp.array([3, 5]))  # the first prompt had three tokens, and padding
    >>> cache.positions(1).tolist()
    [[3], [5]]
    """

    key: Float[Array, "*b n g d"]
    value: Float[Array, "*b n g e"]
    length: Int[Array, "*b"]
    first: Int[Array, "*b"] | None = None

    @property
    def room(self) -> int:
        """For how many positions n there is room at a time, those that are taken included."""
        return self.key.shape[-3]

    def positions(self, t: int) -> Int[Array, "*b t"]:
        """Where the next t tokens stand, `[.., t]`: each example goes on from its own length.

        Args:
          t: how many tokens.
        """
        return self.length[..., None] + jnp.arange(t, dtype=self.length.dtype)


def empty(lead: tuple[int, ...], n: int, heads: int, d: int, e: int, dtype: DTypeLike, slides: bool = False) -> Cache:
    """A cache of length 0.  Its arrays are buffers apart, so that it can be donated."""
    key, value = (jnp.zeros((*lead, n, heads, width), dtype) for width in (d, e))
    length, first = (jnp.zeros(lead, jnp.int32) for _ in range(2))
    return Cache(key, value, length, first if slides else None)


def append(cache: Cache, key: Float[Array, "*b t g d"], value: Float[Array, "*b t g e"]) -> Cache:
    """The cache with the keys and values of the next t positions; those past its end are dropped."""
    t = key.shape[-3]

    def put(held: Array, new: Array, first: Array) -> Array:
        at = first + jnp.arange(t, dtype=first.dtype)
        return held.at[at].set(new.astype(held.dtype), mode="drop", indices_are_sorted=True, unique_indices=True)

    for _ in cache.length.shape:
        put = jax.vmap(put)
    start = cache.length if cache.first is None else cache.length - cache.first
    keys, values = put(cache.key, key, start), put(cache.value, value, start)
    return Cache(keys, values, cache.length + t, cache.first)


def with_room(cache: Cache, t: int, left: int) -> Cache:
    """A cache that slides with room for t more positions, where queries see no more than `left` before their own.

    It is moved only where the room of some example is used up, so that a step costs what it writes.  More positions
    than the slack has room for make it longer, for the one step.
    """
    longer = max(0, left + t - cache.room)
    if longer:
        pad = ((0, 0),) * (cache.key.ndim - 3) + ((0, longer), (0, 0), (0, 0))
        cache = cache._replace(key=jnp.pad(cache.key, pad), value=jnp.pad(cache.value, pad))
    assert cache.first is not None
    used_up = jnp.any(cache.length - cache.first + t > cache.room)
    return jax.lax.cond(used_up, lambda x: slid(x, left), lambda x: x, cache)


def slid(cache: Cache, left: int, room: int | None = None) -> Cache:
    """The cache from the first position on that queries after its end can see, and room for as many as before."""
    assert cache.first is not None
    first = jnp.maximum(cache.first, cache.length - left)
    places = jnp.arange(cache.room if room is None else room, dtype=first.dtype)

    def take(held: Array, by: Array) -> Array:
        return jnp.take(held, places + by, axis=0, mode="clip")

    for _ in first.shape:
        take = jax.vmap(take)
    by = first - cache.first
    return Cache(take(cache.key, by), take(cache.value, by), cache.length, first)


def lengths(caches: Any) -> list[Int[Array, "..."]]:
    """How many positions each of the caches in a pytree holds."""
    return [x.length for x in jax.tree.leaves(caches, is_leaf=_is_cache) if _is_cache(x)]


def shortened(caches: Any, before: list[Int[Array, "..."]], taken: Int[Array, "b"]) -> Any:
    """The caches in a pytree, where only the first `taken` positions that came after `before` are real.

    A cache that holds as many as before is one that is read alone, and stays.
    """
    starts = iter(before)

    def shorten(x: Any) -> Any:
        if not _is_cache(x):
            return x
        start = next(starts)
        return x._replace(length=jnp.where(x.length > start, start + taken, x.length))

    return jax.tree.map(shorten, caches, is_leaf=_is_cache)


def _is_cache(x: object) -> bool:
    return isinstance(x, Cache)


def check(cache: object, lead: tuple[int, ...], heads: int, d: int, e: int) -> None:
    """Raises unless the cache is one of this layer and batch."""
    if not isinstance(cache, Cache):
        raise TypeError(f"cache must be made by the layer's cache() or read(), got {type(cache).__name__}")
    n = cache.room if cache.key.ndim >= 3 else None
    expected = (*lead, n, heads, d), (*lead, n, heads, e)
    slides = cache.first is None or cache.first.shape == lead
    if (cache.key.shape, cache.value.shape) != expected or cache.length.shape != lead or not slides:
        keys = "" if d == e else f" [.., n, {heads}, {d}]"
        wanted = f"key{keys} and value [.., n, {heads}, {e}]"
        raise ValueError(
            f"cache must have {wanted} and length [..] with the batch axes {list(lead)}"
            f" of x, got key {list(cache.key.shape)}, value {list(cache.value.shape)}, length"
            f" {list(cache.length.shape)}"
        )


def check_room(cache: Cache, t: int) -> None:
    """Raises where t more positions are known not to fit, in a cache that keeps all of them."""
    if isinstance(cache.length, Tracer) or cache.first is not None:
        return
    longest = int(jnp.max(cache.length))
    if longest + t > cache.room:
        raise ValueError(
            f"the cache has room for n = {cache.room} positions and holds {longest}: {t} more do not fit;"
            " make a longer one with layer.cache(n, batch)"
        )
