"""Stacks of Transformer blocks: an encoder, a decoder, and both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int

from jattn import masks
from jattn import mods as mods_
from jattn._call import modes
from jattn.nn import _checks, _dropout
from jattn.nn._checks import AnyArray
from jattn.nn._hints import of_calls, of_layers
from jattn.nn._options import AnyMask, Gates, Mods, StackOptions, several
from jattn.nn.cache._record import BlockCache, StackCache
from jattn.nn.transformer import Residual, TransformerBlock

Positional: TypeAlias = Callable[[], mods_.Mod | Sequence[mods_.Mod]]
Kind: TypeAlias = Mapping[str, Any]  # not a TypedDict: it would refuse a dict that was made before the call


class EncoderOptions(StackOptions, total=False):
    """Arguments of `Encoder` that `Decoder` and `EncoderDecoder` hand on."""

    pattern: Sequence[Kind]
    positional: Positional | None
    final_norm: bool | None
    remat: bool
    norm: Callable[..., Callable[[Array], Array]]
    residual: Residual
    dtype: DTypeLike | None
    param_dtype: DTypeLike


class Encoder(nnx.Module):
    """Transformer blocks one after the other, and a norm: norm(block(.. block(x))).

    Blocks of one kind are one block whose parameters have an axis of layers, scanned by `nnx.scan`: it compiles once.
    Blocks of several kinds take turns: a `pattern` of p says what is different about each, and layer n is of kind
    n % p.  Layers after the last whole turn are blocks of their own.

    Args:
      features: width of x and of the output.
      heads: query heads.
      layers: how many blocks.
      pattern: options of `TransformerBlock` for each kind, in place of those for all: `({"mask": masks.window(511)},
        {"mask": masks.causal()})` for layers with a sliding window and without one in turn.
      positional: a term that all blocks share, held and learned once: `jattn.nn.RelativeBias`, `jattn.nn.Alibi`, or a
        module whose call gives mods.
      final_norm: whether x is normalised at the end; by default, unless the blocks end with a norm of their own.
      remat: computes a turn of blocks again for its gradient, in place of keeping what is inside.
      norm: as in `TransformerBlock`, which the last norm is made of too.
      residual: as in `TransformerBlock`.
      dtype: of the computation.
      param_dtype: of the parameters.
      rngs: streams `params` and, with dropout, `dropout`.
      **options: all other options of `TransformerBlock`.

    Parameters (`nnx.Param`):
      `blocks[k]`, those of `TransformerBlock` for kind k, with an axis of turns before all others: layer n is
      `blocks[n % p]` at n // p; `rest[k]`, those after the last whole turn; `norm`; those of `positional`.

    Raises:
      ValueError, TypeError: as `TransformerBlock` does; layers that are none, or an empty pattern.

    >>> import jax.numpy as jnp, jattn
    >>> from flax import nnx
    >>> from jattn import masks
    >>> encoder = jattn.nn.Encoder(32, 4, 2, rotary_base=10_000.0, rngs=nnx.Rngs(0))
    >>> encoder(jnp.ones((8, 5, 32)), mask=masks.lengths(jnp.arange(8))).shape
    (8, 5, 32)
    >>> modern_bert = jattn.nn.Encoder(
    ...     32, 4, 7, pattern=({}, *({"mask": masks.window(64, 64)},) * 2), rotary_base=10_000.0, rngs=nnx.Rngs(0)
    ... )
    >>> len(modern_bert.blocks), len(modern_bert.rest)
    (3, 1)

    Source: Vaswani et al. 2017; blocks in turn: Beltagy et al. 2020.
    """

    features: int
    layers: int
    dropout: float
    remat: bool
    positional: Positional | None
    blocks: nnx.List[TransformerBlock]
    rest: nnx.List[TransformerBlock]
    norm: Callable[[Array], Array] | None

    @of_layers
    def __init__(
        self,
        features: int,
        heads: int,
        layers: int,
        *,
        pattern: Sequence[Kind] = ({},),
        positional: Positional | None = None,
        final_norm: bool | None = None,
        remat: bool = False,
        norm: Callable[..., Callable[[Array], Array]] = nnx.LayerNorm,
        residual: Residual = Residual(),  # noqa: B008
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
        **options: Unpack[StackOptions],
    ):
        _checks.check_rngs(rngs)
        _checks.check_sizes(layers=layers)
        _checks.check_flags(remat=remat, final_norm=bool(final_norm) if final_norm is None else final_norm)
        if isinstance(pattern, Mapping) or not pattern:
            raise ValueError(f"pattern must have options of blocks for each kind of them, got {pattern!r}")
        if isinstance(positional, mods_.Mod) or not (positional is None or callable(positional)):
            raise TypeError(f"positional must be like jattn.nn.Alibi(heads); a mod goes to mods=, got {positional!r}")
        types = {"dtype": dtype, "param_dtype": param_dtype}
        shared: dict[str, Any] = {"norm": norm, "residual": residual, **types, **options}
        self.features, self.layers, self.remat = features, layers, remat
        self.dropout = max(({**shared, **kind}.get("dropout", 0.0) for kind in pattern), default=0.0)
        turns, over = divmod(layers, len(pattern))

        def block(kind: Kind, rngs: nnx.Rngs) -> TransformerBlock:
            return TransformerBlock(features, heads, rngs=rngs, **{**shared, **kind})

        def stacked(kind: Kind) -> TransformerBlock:
            return nnx.split_rngs(splits=turns)(nnx.vmap(lambda rngs: block(kind, rngs)))(rngs)

        self.blocks = nnx.List([stacked(kind) for kind in pattern] if turns else [])
        self.rest = nnx.List([block(kind, rngs) for kind in pattern[:over]])
        self.positional = nnx.data(None) if positional is None else positional
        ends = residual.norms != "post" if final_norm is None else final_norm
        self.norm = norm(features, rngs=rngs, **types) if ends else nnx.data(None)

    @of_calls
    @modes.ordinary
    def __call__(
        self,
        x: Float[AnyArray, "*b t features"],
        context: Float[AnyArray, "*b s context_features"] | None = None,
        *,
        mask: AnyMask = None,
        mods: Mods = (),
        gates: Gates = (),
        bias: ArrayLike | None = None,
        context_mask: AnyMask = None,
        positions: ArrayLike | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
    ) -> Float[Array, "*b t features"]:
        """All blocks.

        Args:
          x: `[.., t, features]`, with any number of batch axes, or none.
          context: `[.., s, context_features]`, for blocks with cross-attention.
          mask: of every block, beside its own, as are the others.
          mods: after those of `positional`.
          gates: likewise.
          bias: array broadcastable to `[.., h, t, s]`, added to every scaled score.
          context_mask: of cross-attentions.
          positions: for rotary embeddings alone: numbers broadcastable to `[.., t]`, 0, 1, ... by default.
          deterministic: in the place of the blocks' own.
          rngs: where this call's dropout comes from, in the place of the blocks' own streams.

        Returns:
          `[.., t, features]`.

        Raises:
          ValueError, TypeError: input that does not fit.
        """
        _checks.check_array(x, "x", "t", self.features)
        call: dict[str, Any] = {
            "mask": mask, "mods": self._mods(mods), "gates": gates, "bias": bias, "context_mask": context_mask,
            "positions": positions, "deterministic": deterministic,
        }  # fmt: skip

        keys, kinds = self._keys(rngs, deterministic), len(self.blocks)
        first, last = (None, None) if keys is None else jnp.split(keys, [self.layers - len(self.rest)])
        out: Array = jnp.asarray(x)
        if kinds:
            turn, streams, state = self._turn(self.blocks, context, call)
            first = None if first is None else first.reshape(-1, kinds)
            out, streams = jax.lax.scan(lambda x, layer: turn(x, *layer), out, (streams, state, first))
            self._drawn(self.blocks, streams, keys, deterministic)
        if self.rest:
            turn, streams, state = self._turn(self.rest, context, call)
            out, streams = turn(out, streams, state, last)
            self._drawn(self.rest, streams, keys, deterministic)
        return out if self.norm is None else self.norm(out)

    def _turn(self, blocks: nnx.List[TransformerBlock], context: AnyArray | None, call: dict[str, Any]) -> Any:
        """Blocks as a function of x, their streams of dropout, their other arrays and keys; and those arrays.

        It is pure, so that it can be scanned and rematerialised inside whatever transformation the stack is called in.
        """
        graph, streams, state = nnx.split(blocks, nnx.RngState, ...)

        def turn(x: Array, streams: nnx.State, state: nnx.State, keys: Array | None) -> tuple[Array, nnx.State]:
            merged = nnx.merge(graph, streams, state)
            for n, block in enumerate(merged):
                x = block(x, context, rngs=None if keys is None else nnx.Rngs(dropout=keys[n]), **call)
            return x, nnx.state(merged, nnx.RngState)

        return jax.checkpoint(turn) if self.remat else turn, streams, state

    def _drawn(
        self, blocks: nnx.List[TransformerBlock], streams: nnx.State, keys: Array | None, deterministic: bool | None
    ) -> None:
        """Keeps how far the blocks' own streams have come, where they were drawn from."""
        off = all(x.attention.deterministic for x in blocks) if deterministic is None else deterministic
        if self.dropout and keys is None and not off:
            nnx.update(blocks, streams)

    def _mods(self, mods: Mods) -> tuple[mods_.Mod, ...]:
        """Those that the blocks share, and those of the call."""
        return (*(() if self.positional is None else several(self.positional())), *several(mods))

    def _keys(self, rngs: nnx.Rngs | nnx.RngStream | None, deterministic: bool | None) -> Array | None:
        """A key of dropout for each layer, of what a call is given."""
        _checks.check_call_rngs(rngs)
        if rngs is None or deterministic or not self.dropout:
            return None
        if isinstance(rngs, nnx.Rngs):
            return jax.random.split(rngs["dropout"](), self.layers) if _dropout.feeds(rngs) else None
        return jax.random.split(rngs(), self.layers)


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
        make = lambda block: block.cache(n, batch, context, dtype, slack=slack, page=page, pages=pages)
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
        call = {"mask": mask, "mods": self._mods(mods), "gates": gates, "bias": bias}
        call |= {"context_mask": context_mask, "positions": positions, "lengths": lengths, "parents": parents}
        graph, state = nnx.split(self.blocks)  # `jax.lax.scan` inside another takes arrays, and no modules

        def through(
            x: Array, blocks: Sequence[TransformerBlock], caches: tuple[BlockCache, ...]
        ) -> tuple[Array, tuple[BlockCache, ...]]:
            after = []
            for block, cache in zip(blocks, caches, strict=True):
                x, cache = block.decode(x, cache, **call)
                after.append(cache)
            return x, tuple(after)

        x, blocks = jnp.asarray(x), cache.blocks
        if blocks:
            turn = lambda x, layer: through(x, nnx.merge(graph, layer[0]), layer[1])
            x, blocks = jax.lax.scan(turn, x, (state, blocks))
        x, rest = through(x, self.rest, cache.rest)
        return x if self.norm is None else self.norm(x), StackCache(blocks, rest)


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
        encoder: Kind | None = None,
        decoder: Kind | None = None,
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
