"""Blocks that see what came before, decoded a token at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int

from jattn import masks
from jattn._call import modes
from jattn.nn._checks import AnyArray, as_lengths, check_array
from jattn.nn._decoding import has_seen, window
from jattn.nn._hints import of_calls
from jattn.nn._options import AnyMask, Gates, Mods
from jattn.nn.cache._kinds import check_room
from jattn.nn.cache._record import BlockCache, StackCache
from jattn.nn.stacks._encoder import Encoder, EncoderOptions, settled
from jattn.nn.transformer import TransformerBlock


class Decoder(Encoder):
    """Blocks one after the other, each position seeing those before it, and a norm; decoded a token at a time.

    It is an `Encoder` whose blocks have `mask=masks.causal()`, unless `mask` is given: `mask=masks.causal() &
    masks.window(left=511)`, or what the pattern has.  With `context_features` its blocks also read a context.

    Args:
      features: width of x and of the output.
      heads: query heads.
      layers: how many blocks.
      rngs: streams `params` and, with dropout, `dropout`.
      **options: all other arguments of `Encoder`.

    Parameters (`nnx.Param`):
      Those of `Encoder`.

    Raises:
      ValueError, TypeError: as `Encoder` does.

    >>> import jax, jax.numpy as jnp, jattn
    >>> from flax import nnx
    >>> llama = jattn.nn.Decoder(
    ...     32, 4, 2, kv_heads=2, rotary_base=500_000.0, norm=nnx.RMSNorm, gated=True, activation=jax.nn.silu,
    ...     use_bias=False, rngs=nnx.Rngs(0),
    ... )
    >>> x = jnp.ones((8, 5, 32))
    >>> prompt, cache = llama.decode(x[:, :4], llama.cache(100, batch=8))
    >>> last, cache = llama.decode(x[:, 4:], cache)
    >>> bool(jnp.allclose(last, llama(x)[:, 4:], atol=1e-5))
    True

    Source: Vaswani et al. 2017; a decoder alone: Liu et al. 2018, "Generating Wikipedia by Summarizing Long Sequences".
    """

    def __init__(self, features: int, heads: int, layers: int, *, rngs: nnx.Rngs, **options: Unpack[EncoderOptions]):
        causal: dict[str, Any] = {"mask": masks.causal(), **options}
        super().__init__(features, heads, layers, rngs=rngs, **causal)

    @modes.ordinary
    def cache(
        self,
        n: int | np.integer,
        batch: int | np.integer | Sequence[int | np.integer] = (),
        context: Float[AnyArray, "*b s context_features"] | None = None,
        dtype: DTypeLike | None = None,
        *,
        slack: int | None = None,
        page: int | None = None,
        pages: int | None = None,
    ) -> StackCache:
        """What `decode` starts from.

        Args:
          n: the most positions that will be decoded.
          batch: the batch axes of x; an int for one axis.
          context: `[.., s, context_features]` for blocks with cross-attention, which project it here, once.
          dtype: in which the keys and values of x are kept; see `MultiHeadAttention.cache`.
          slack: where a block's mask has a window, keeps that and this many positions more, in place of n.
          page: keeps positions in pages of so many, which examples share, in blocks that `slack` does not speak of; see
            `MultiHeadAttention.cache`.
          pages: how many pages each block has.

        Returns:
          Room for n positions in every block, and the keys and values of the context.

        Raises:
          ValueError, TypeError: as `TransformerBlock.cache` does.
        """

        def make(block: TransformerBlock) -> BlockCache:
            read = self._read(block, context)
            return block.cache(n, batch, read, dtype, slack=slack, page=page, pages=pages)

        return StackCache(tuple(nnx.vmap(make)(x) for x in self.blocks), tuple(make(x) for x in self.rest))

    @of_calls
    @modes.ordinary
    def decode(
        self,
        x: Float[AnyArray, "*b t features"],
        cache: StackCache,
        *,
        mask: AnyMask = None,
        mods: Mods = (),
        gates: Gates = (),
        bias: ArrayLike | None = None,
        context_mask: AnyMask = None,
        positions: ArrayLike | None = None,
        lengths: Int[ArrayLike, "*b"] | None = None,
        parents: Int[ArrayLike, "*b t"] | Sequence[int] | None = None,
    ) -> tuple[Float[Array, "*b t features"], StackCache]:
        """The next t positions, as `MultiHeadAttention.decode` has them; nothing is dropped.

        Args:
          x: `[.., t, features]`.
          cache: from `decoder.cache(n, batch, context)`, or from the call before.
          mask: as in a call, with n in the place of an axis `s`, as are the others.
          mods: as in a call.
          gates: as in a call.
          bias: as in a call.
          context_mask: as in a call.
          positions: for rotary embeddings alone, in the place of those in the cache.
          lengths: as in `MultiHeadAttention.decode`, as are parents.
          parents: likewise.

        Returns:
          `[.., t, features]`, and the cache with t more positions.

        Raises:
          TypeError: the cache is none that `cache` or `decode` returned.
          ValueError: as `TransformerBlock.decode` does.
        """
        if not isinstance(cache, StackCache):
            raise TypeError(f"cache must be made by the decoder's cache(), got {type(cache).__name__}")
        check_array(x, "x", "t", self.features)
        call = {"mask": mask, "mods": self._mods(mods), "gates": gates, "bias": bias}
        call |= {"context_mask": context_mask, "lengths": lengths, "parents": parents}
        graph, state = nnx.split(self.blocks)  # `jax.lax.scan` inside another takes arrays, and no modules

        def through(
            x: Array, blocks: Sequence[TransformerBlock], caches: tuple[BlockCache, ...]
        ) -> tuple[Array, tuple[BlockCache, ...]]:
            after = []
            for block, cache in zip(blocks, caches, strict=True):
                x, cache = block.decode(x, cache, positions=self._turned(block, positions), **call)
                after.append(cache)
            return x, tuple(after)

        x, blocks = jnp.asarray(x), cache.blocks
        if blocks:
            _check(self.blocks, blocks, x, lengths)  # inside the loop lengths are traced, and nobody could raise
            turn = lambda x, layer: through(x, nnx.merge(graph, layer[0]), layer[1])
            x, blocks = jax.lax.scan(turn, settled(turn, x, (state, blocks)), (state, blocks))
        x, rest = through(x, self.rest, cache.rest)
        return x if self.norm is None else self.norm(x), StackCache(blocks, rest)


def _check(
    blocks: Sequence[TransformerBlock], caches: Sequence[BlockCache], x: Array, lengths: ArrayLike | None
) -> None:
    """Raises where caches that have the layers in front of their axes are known to have no room for more positions, or
    not what these see."""
    taken = None if lengths is None else as_lengths(lengths, x.shape[:-2], x.shape[-2]).astype(jnp.int32)
    for block, cache in zip(blocks, caches, strict=True):
        past = cache.past
        check_room(past, x.shape[-2], taken if taken is None else jnp.broadcast_to(taken, past.length.shape))
        left = None if past.first is None else window(block.attention._own_options())
        if left is not None:
            has_seen(past, left)
