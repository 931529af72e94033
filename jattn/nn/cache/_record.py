"""The records of caches: of a layer, a block and a stack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from jattn._call import modes


class Rows(NamedTuple):
    """What there is of each position; whatever is done with positions is done with all of these.

    Attributes:
      key: `[.., n, g, d]`.
      value: `[.., n, g, e]`.
      key_scale: `[.., n, g]`, or None.
      value_scale: likewise.
    """

    key: Num[Array, "*b n g d"]
    value: Num[Array, "*b n g e"]
    key_scale: Float[Array, "*b n g"] | None = None
    value_scale: Float[Array, "*b n g"] | None = None


class Cache(NamedTuple):
    """Keys and values of up to n positions, projected, normalised and rotated (Shazeer 2019).

    Layers make it (`cache`, `read`) and return it (`decode`).  Its arrays keep their shapes, so that it can be carried
    through `jax.jit`, `jax.lax.scan` and `jax.vmap`.

    To shorten is to forget: after prompts of several lengths, padded at their ends, were decoded at once,
    `cache._replace(length=lengths)` goes on from the end of each.

    Args:
      key: `[.., n, g, d]`, with g key and value heads and any number of batch axes; in pages `[.., p, page, g, d]`,
        p pages that all examples along the last batch axis share.
      value: `[.., n, g, e]`, of the same dtype; in pages `[.., p, page, g, e]`.
      length: `[..]` int32, how many positions each example of the batch has had; what comes after them is not looked
        at.
      first: `[..]` int32, which position is the first in the arrays, where those that no window reaches any more make
        room (`layer.cache(n, batch, slack=..)`); None where all positions are kept.
      pages: `[.., m]` int32, which page has positions m page, .. of each example (`layer.cache(n, batch, page=..)`); p
        where it has none yet.
      holders: `[.., p]` int32, how many examples hold each page; one that nobody holds is free.
      key_scale: `[.., n, g]`, in pages `[.., p, page, g]`: what keys of few bits are to be multiplied with
        (`layer.cache(n, batch, "int8")`); None for keys as they are.
      value_scale: likewise of values.

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

    key: Num[Array, "..."]
    value: Num[Array, "..."]
    length: Int[Array, "..."]
    first: Int[Array, "..."] | None = None
    pages: Int[Array, "..."] | None = None
    holders: Int[Array, "..."] | None = None
    key_scale: Float[Array, "..."] | None = None
    value_scale: Float[Array, "..."] | None = None

    @property
    def room(self) -> int:
        """For how many positions n there is room at a time, those that are taken included."""
        rows = self.key.shape[-3]
        return rows if self.pages is None else rows * self.pages.shape[-1]

    @modes.ordinary
    def positions(self, t: int) -> Int[Array, "*b t"]:
        """Where the next t tokens stand, `[.., t]`: each example goes on from its own length.

        Args:
          t: how many tokens.
        """
        return self.length[..., None] + jnp.arange(t, dtype=self.length.dtype)


class BlockCache(NamedTuple):
    """What `TransformerBlock.decode` remembers: arrays that keep their shapes, as those of `Cache` do.

    Args:
      past: of the block's self-attention.
      context: what its cross-attention reads, None for a block without one.

    >>> import jattn
    >>> from flax import nnx
    >>> block = jattn.nn.TransformerBlock(32, 4, mask=jattn.masks.causal(), rngs=nnx.Rngs(0))
    >>> cache = block.cache(100, batch=2)
    >>> cache.past.room, cache.context
    (100, None)
    """

    past: Cache
    context: Cache | None


class StackCache(NamedTuple):
    """What `Decoder.decode` remembers.

    Args:
      blocks: of the blocks that are scanned, one for each of the pattern, with an axis for its turns before all others.
      rest: of the blocks after the last whole turn.

    >>> from flax import nnx
    >>> import jattn
    >>> decoder = jattn.nn.Decoder(32, 4, 6, rngs=nnx.Rngs(0))
    >>> decoder.cache(100, batch=2).blocks[0].past.key.shape
    (6, 2, 100, 4, 8)
    """

    blocks: tuple[BlockCache, ...]
    rest: tuple[BlockCache, ...]


def rows_of(cache: Cache) -> Rows:
    """What the cache has of each position."""
    return Rows(cache.key, cache.value, cache.key_scale, cache.value_scale)


def with_rows(cache: Cache, rows: Rows) -> Cache:
    """The cache with these in the place of its own."""
    return cache._replace(**rows._asdict())


def each(change: Callable[..., Cache], caches: Any, *others: Any, contexts: bool = True) -> Any:
    """The pytree of caches with each changed, together with those at its place in the others.

    `contexts`: whether those that are only read are changed too.

    Raises:
      TypeError: there is no cache in it.
    """
    is_cache = lambda x: isinstance(x, (Cache, BlockCache))
    if not any(map(is_cache, jax.tree.leaves(caches, is_leaf=is_cache))):
        expected = "a cache or a pytree of them, which a layer's cache(), read() or decode() gives"
        raise TypeError(f"caches must be {expected}, got {type(caches).__name__} without any")

    def one(x: Any, *rest: Any) -> Any:
        if isinstance(x, BlockCache):
            past = change(x.past, *(y.past for y in rest))
            context = x.context
            if contexts and context is not None:
                context = change(context, *(y.context for y in rest))
            return BlockCache(past, context)
        return change(x, *rest) if isinstance(x, Cache) else x

    return jax.tree.map(one, caches, *others, is_leaf=is_cache)
