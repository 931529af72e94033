"""An encoder, and a decoder that reads what it made of x."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
from flax import nnx
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int

from jattn._call import modes
from jattn.nn._checks import AnyArray
from jattn.nn._hints import of_calls, of_layers
from jattn.nn._options import AnyMask
from jattn.nn.cache._record import StackCache
from jattn.nn.stacks._decoder import Decoder
from jattn.nn.stacks._encoder import Encoder, EncoderOptions, LayerKind


class EncoderDecoder(nnx.Module):
    """An encoder, and a decoder that reads what it made of x: decoder(y, encoder(x)).

    Args:
      features: width of x, of y and of the output.
      heads: query heads.
      layers: how many blocks each of the two has.
      encoder: options of the `Encoder` alone.
      decoder: options of the `Decoder` alone.
      rngs: streams `params` and, with dropout, `dropout`.
      **options: options of both.

    Parameters (`nnx.Param`):
      `encoder` and `decoder`.

    Raises:
      ValueError, TypeError: as `Encoder` and `Decoder` do.

    >>> import jax, jax.numpy as jnp, jattn
    >>> from flax import nnx
    >>> from jattn import masks
    >>> bias = lambda **options: {"positional": jattn.nn.RelativeBias(4, **options, rngs=nnx.Rngs(1))}
    >>> t5 = jattn.nn.EncoderDecoder(
    ...     32, 4, 2, encoder=bias(), decoder=bias(bidirectional=False), norm=nnx.RMSNorm, use_bias=False,
    ...     activation=jax.nn.relu, score=jattn.scores.dot(1.0), rngs=nnx.Rngs(0),
    ... )
    >>> x, y, real = jnp.ones((8, 9, 32)), jnp.ones((8, 5, 32)), masks.lengths(jnp.arange(1, 9))
    >>> t5(x, y, mask=real).shape
    (8, 5, 32)
    >>> out, cache = t5.decode(y[:, :1], t5.cache(5, x, mask=real), mask=real)
    >>> out.shape
    (8, 1, 32)

    Source: Vaswani et al. 2017, section 3.1.
    """

    encoder: Encoder
    decoder: Decoder

    @of_layers
    def __init__(
        self,
        features: int,
        heads: int,
        layers: int,
        *,
        encoder: LayerKind | None = None,
        decoder: LayerKind | None = None,
        rngs: nnx.Rngs,
        **options: Unpack[EncoderOptions],
    ):
        reads: dict[str, Any] = {**options, **(encoder or {})}
        self.encoder = Encoder(features, heads, layers, rngs=rngs, **reads)
        reads = {"context_features": features, **options, **(decoder or {})}
        self.decoder = Decoder(features, heads, layers, rngs=rngs, **reads)

    @of_calls
    @modes.ordinary
    def __call__(
        self,
        x: Float[AnyArray, "*b s features"],
        y: Float[AnyArray, "*b t features"],
        *,
        mask: AnyMask = None,
        target_mask: AnyMask = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
    ) -> Float[Array, "*b t features"]:
        """What the decoder makes of y and of what the encoder made of x.

        Args:
          x: `[.., s, features]`.
          y: `[.., t, features]`.
          mask: which keys of x are real, for the encoder and for who reads it: `masks.lengths(n)`.
          target_mask: of y to itself, beside the decoder's own.
          deterministic: in the place of the blocks' own.
          rngs: where this call's dropout comes from, in the place of the blocks' own streams.

        Returns:
          `[.., t, features]`.

        Raises:
          ValueError, TypeError: input that does not fit.
        """
        options = {"deterministic": deterministic, "rngs": rngs}
        read = self.encoder(x, mask=mask, **options)
        return self.decoder(y, read, mask=target_mask, context_mask=mask, **options)

    def cache(
        self,
        n: int | np.integer,
        x: Float[AnyArray, "*b s features"],
        *,
        mask: AnyMask = None,
        dtype: DTypeLike | None = None,
        slack: int | None = None,
        page: int | None = None,
        pages: int | None = None,
    ) -> StackCache:
        """What `decode` starts from: x is encoded and projected here, once.

        Args:
          n: the most positions that will be decoded.
          x: `[.., s, features]`.
          mask: as in a call.
          dtype: in which the keys and values of y are kept.
          slack: as `Decoder.cache` has it.
          page: likewise.
          pages: likewise.

        Returns:
          Room for n positions, and the keys and values of x.

        Raises:
          ValueError, TypeError: as `Decoder.cache` does.
        """
        context = self.encoder(x, mask=mask, deterministic=True)
        return self.decoder.cache(n, x.shape[:-2], context, dtype, slack=slack, page=page, pages=pages)

    def decode(
        self,
        y: Float[AnyArray, "*b t features"],
        cache: StackCache,
        *,
        mask: AnyMask = None,
        target_mask: AnyMask = None,
        lengths: Int[ArrayLike, "*b"] | None = None,
        parents: Int[ArrayLike, "*b t"] | Sequence[int] | None = None,
    ) -> tuple[Float[Array, "*b t features"], StackCache]:
        """The next t positions of y.

        Args:
          y: `[.., t, features]`.
          cache: from `cache`, or from the call before.
          mask: as in a call.
          target_mask: as in a call, with n in the place of an axis `s`.
          lengths: as `Decoder.decode` has them.
          parents: likewise.

        Returns:
          `[.., t, features]`, and the cache with t more positions.

        Raises:
          ValueError, TypeError: as `Decoder.decode` does.
        """
        return self.decoder.decode(y, cache, mask=target_mask, context_mask=mask, lengths=lengths, parents=parents)
