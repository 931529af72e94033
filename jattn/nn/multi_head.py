"""Multi-head attention with its projections, for Flax NNX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import PrecisionLike
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from jattn import api, masks
from jattn._call import modes
from jattn.nn import _cache, _checks, _decoding, _dropout
from jattn.nn._batching import batch_axes, batched
from jattn.nn._cache import Cache
from jattn.nn._checks import AnyArray
from jattn.nn._hints import of_calls, of_layers
from jattn.nn._options import AnyMask, Asked, AttentionOptions, Gates, Held, Mods, Options, checked, hold, join
from jattn.nn._projections import Projections
from jattn.nn._rotary import Turn, embedding

_OPTIONS = ("score", "normalizer", "mask", "mods", "gates", "implementation", "blocks")


class MultiHeadAttention(nnx.Module):
    """Multi-head attention (Vaswani et al. 2017): self-attention of x, or cross-attention from x to a context c.

        q = x Wq + bq,  k = c Wk + bk,  v = c Wv + bv            (c = x without a context)
        q = rotary(norm(q)),  k = rotary(norm(k))                (where asked for)
        out = jattn.attention(q, k, v, ...) Wo + bo

    Args:
      features: width of x and of the output.
      heads: query heads h.
      kv_heads: key and value heads g, h by default; h is a multiple of g (grouped queries, Ainslie et al. 2023).
      head_dim: width d of a head, features / heads by default.
      context_features: width of the context, `features` by default.
      rotary_base: rotary position embedding with this base, as in `jattn.nn.rotary` (RoFormer, Su et al. 2021, who take
        10_000.0); None for none.
      rotary: in its place, a `jattn.nn.Rotary`, or any function of queries or keys `[.., n, h, d]` and positions, or
        None, that gives as many; a module of Flax is one, and learns.
      qk_norm: divides each query and each key by its root mean square and multiplies by a learned scale `[d]`, before
        the rotary embedding (Henry et al. 2020; Dehghani et al. 2023; Zhang & Sennrich 2019).
      sinks: gives every head a learned logit in the softmax's denominator (Xiao et al. 2024; gpt-oss), at first 0, or
        what an array `[h]` says.
      dropout: rate at which attention weights are dropped, in [0, 1), while not `deterministic`.
      deterministic: whether dropout is off.  `model.train()` and `model.eval()` set it.
      use_bias: whether the projections add bq, bk, bv and bo.
      kernel_init: initialiser of Wq, Wk, Wv and Wo.
      out_kernel_init: initialiser of Wo in its place.
      dtype: of the computation; by default what x and the parameters promote to.
      param_dtype: of the parameters.
      precision: a `jax.lax.Precision` for all products.
      rngs: stream `params` for the parameters and, with dropout, `dropout`: the layer keeps a stream forked from it.
      **options: options of `jattn.attention` for every call: score, normalizer, mask, mods, gates, implementation,
        blocks.  Floating-point arrays in them become parameters and learn, but for those of masks and of what
        `jattn.nn.frozen` marks: `mods=jattn.nn.frozen(mods.alibi(slopes))`.

    Parameters (`nnx.Param`):
      `query.kernel` `[features, h, d]`, `key.kernel` and `value.kernel` `[context_features, g, d]`, `out.kernel`
      `[h, d, features]`; `query.bias` `[h, d]`, `key.bias` and `value.bias` `[g, d]`, `out.bias` `[features]`;
      `query_norm.scale` and `key_norm.scale` `[d]`; `sinks` `[h]`; `arrays[n]`, those of the options that learn, with
      n their place among all in pytree order.
      The four projections are `nnx.LinearGeneral`: initialisers made with `nnx.with_partitioning` annotate kernels.

    Raises:
      ValueError: sizes that do not go together, a rate outside [0, 1), or dropout without an rng.
      TypeError: an unknown option, or a size, flag or rngs of another type.

    >>> import jax.numpy as jnp, jattn
    >>> from flax import nnx
    >>> layer = jattn.nn.MultiHeadAttention(
    ...     32, 4, kv_heads=2, rotary_base=10_000.0, mask=jattn.masks.causal(), dropout=0.1, rngs=nnx.Rngs(0)
    ... )
    >>> x = jnp.ones((8, 5, 32))
    >>> layer(x).shape
    (8, 5, 32)
    >>> layer.eval()  # no dropout
    >>> layer(x, mask=jattn.masks.lengths(jnp.arange(8))).shape
    (8, 5, 32)

    Source: Vaswani et al. 2017, section 3.2.2.
    """

    features: int
    heads: int
    kv_heads: int
    head_dim: int
    context_features: int
    rotary: Turn | None
    dropout: float
    deterministic: bool
    precision: PrecisionLike
    cache_dtype: DTypeLike
    query: nnx.LinearGeneral
    key: nnx.LinearGeneral
    value: nnx.LinearGeneral
    out: nnx.LinearGeneral
    query_norm: nnx.RMSNorm | None
    key_norm: nnx.RMSNorm | None
    sinks: nnx.Param[Array] | None
    rngs: nnx.RngStream | None
    arrays: nnx.List[nnx.Variable[Array]]
    held: Held

    @of_layers
    def __init__(
        self,
        features: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        context_features: int | None = None,
        rotary_base: float | None = None,
        rotary: Turn | None = None,
        qk_norm: bool = False,
        sinks: bool | ArrayLike = False,
        dropout: float = 0.0,
        deterministic: bool = False,
        use_bias: bool = True,
        kernel_init: nnx.Initializer = nnx.initializers.lecun_normal(),  # noqa: B008
        out_kernel_init: nnx.Initializer | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: PrecisionLike = None,
        rngs: nnx.Rngs,
        **options: Unpack[AttentionOptions],
    ):
        _checks.check_rngs(rngs)
        _checks.check_flags(qk_norm=qk_norm, deterministic=deterministic, use_bias=use_bias)
        _checks.check_rate(dropout)
        self.features, self.heads = features, heads
        self.kv_heads = heads if kv_heads is None else kv_heads
        self.context_features = features if context_features is None else context_features
        _checks.check_sizes(features=features, heads=heads, kv_heads=self.kv_heads)
        _checks.check_sizes(context_features=self.context_features)
        if heads % self.kv_heads:
            raise ValueError(f"heads must be a multiple of kv_heads, got heads = {heads}, kv_heads = {self.kv_heads}")
        if head_dim is None:
            _checks.check_divides(features, heads)
        self.head_dim = features // heads if head_dim is None else head_dim
        _checks.check_sizes(head_dim=self.head_dim)
        self.rotary = embedding(rotary, rotary_base, self.head_dim)
        self.dropout, self.deterministic = dropout, deterministic
        self.precision = precision
        self.cache_dtype = param_dtype if dtype is None else dtype

        def project(
            source: int | tuple[int, int],
            target: int | tuple[int, int],
            init: nnx.Initializer,
            axis: int | tuple[int, int] = -1,
        ) -> nnx.LinearGeneral:
            return nnx.LinearGeneral(
                source, target, axis=axis, use_bias=use_bias, kernel_init=init,
                dtype=dtype, param_dtype=param_dtype, precision=precision, rngs=rngs,
            )  # fmt: skip

        def norm() -> nnx.RMSNorm | None:
            if not qk_norm:
                return None
            return nnx.RMSNorm(self.head_dim, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

        self.query = project(features, (heads, self.head_dim), kernel_init)
        self.key = project(self.context_features, (self.kv_heads, self.head_dim), kernel_init)
        self.value = project(self.context_features, (self.kv_heads, self.head_dim), kernel_init)
        self.out = project((heads, self.head_dim), features, out_kernel_init or kernel_init, axis=(-2, -1))
        self.query_norm, self.key_norm = nnx.data(norm()), nnx.data(norm())
        logits = _sinks(sinks, heads, param_dtype)
        self.sinks = nnx.data(None if logits is None else nnx.Param(logits))
        self.rngs = nnx.data(rngs["dropout"].fork() if dropout > 0 and _dropout.feeds(rngs) else None)
        arrays, self.held = hold(checked(options, _OPTIONS, "MultiHeadAttention"))
        self.arrays = nnx.List(arrays)

    @of_calls
    @modes.ordinary
    def __call__(
        self,
        x: Float[AnyArray, "*b t features"],
        context: Float[AnyArray, "*b s context_features"] | Cache | None = None,
        *,
        mask: AnyMask = None,
        mods: Mods = (),
        gates: Gates = (),
        bias: ArrayLike | None = None,
        positions: ArrayLike | None = None,
        context_positions: ArrayLike | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
    ) -> Float[Array, "*b t features"]:
        """Attends from x to the context, or to x itself.

        Args:
          x: `[.., t, features]`, with any number of batch axes, or none.
          context: `[.., s, context_features]`, with the same batch axes; or what `read` made of it, or `decode` of
            what came before.
          mask: from `jattn.masks`, or a boolean array broadcastable to `[.., h, t, s]`; holds beside the layer's own.
            To masks, mods and gates all batch axes are one axis `b`, the last of them the fastest.
          mods: from `jattn.mods`, one or several; they come after the layer's own.
          gates: from `jattn.gates`, likewise.
          bias: array broadcastable to `[.., h, t, s]`, added to the scaled score.
          positions: of x, for the rotary embedding alone: numbers broadcastable to `[.., t]`, 0, 1, ... by default.
          context_positions: of the context, `[.., s]`, 0, 1, ... by default.
          deterministic: in the place of the layer's own.
          rngs: where this call's dropout comes from, in the place of the layer's own stream.

        Returns:
          `[.., t, features]`, in the layer's `dtype`.  A query that may attend to nothing gives the bias of the output.

        Raises:
          ValueError, TypeError: input that does not fit, or dropout without a stream of random keys.
        """
        asked = Asked(mask, mods, gates, bias)
        query, key, value, options = self._inputs(x, context, positions, context_positions, asked)
        if self.dropout > 0 and not (self.deterministic if deterministic is None else deterministic):
            options["dropout"] = _dropout.drawn(self.dropout, self.rngs, rngs)
        return self.out(batched(api.attention, query, key, value, options))

    @of_calls
    @modes.ordinary
    def weights(
        self,
        x: Float[AnyArray, "*b t features"],
        context: Float[AnyArray, "*b s context_features"] | Cache | None = None,
        *,
        mask: AnyMask = None,
        mods: Mods = (),
        gates: Gates = (),
        bias: ArrayLike | None = None,
        positions: ArrayLike | None = None,
        context_positions: ArrayLike | None = None,
    ) -> Float[Array, "*b h t s"]:
        """The weights with which a call with the same arguments attends, without dropout.

        They are for looking at: memory is O(t * s).

        Args:
          x: as in a call of the layer.
          context: likewise.
          mask: likewise.
          mods: likewise.
          gates: likewise.
          bias: likewise.
          positions: likewise.
          context_positions: likewise.

        Returns:
          `[.., h, t, s]`, float32 or wider.

        Raises:
          ValueError, TypeError: input that does not fit.
        """
        asked = Asked(mask, mods, gates, bias)
        return batched(api.weights, *self._inputs(x, context, positions, context_positions, asked))

    def cache(
        self,
        n: int | np.integer,
        batch: int | np.integer | Sequence[int | np.integer] = (),
        dtype: DTypeLike | None = None,
    ) -> Cache:
        """Room for the keys and values of n positions: what `decode` starts from.

        Args:
          n: the most positions that will be decoded.
          batch: the batch axes of x; an int for one axis.
          dtype: in which keys and values are kept, by default the layer's `dtype`, or else that of its parameters.

        Returns:
          Arrays `[*batch, n, kv_heads, head_dim]` and a length of 0 for each example.

        Raises:
          ValueError: n or a batch axis is no such number.
        """
        if not _checks.is_whole(n) or n < 1:
            raise ValueError(f"n must be an int >= 1, got {n!r}")
        return _cache.empty(batch_axes(batch), int(n), self.kv_heads, self.head_dim, dtype or self.cache_dtype)

    @of_calls
    @modes.ordinary
    def decode(
        self,
        x: Float[AnyArray, "*b t features"],
        cache: Cache,
        *,
        mask: AnyMask = None,
        mods: Mods = (),
        gates: Gates = (),
        bias: ArrayLike | None = None,
        positions: ArrayLike | None = None,
    ) -> tuple[Float[Array, "*b t features"], Cache]:
        """Self-attention of the next t positions, to themselves and to all that the cache holds (Shazeer 2019).

        They are one token, a few, or a whole prompt.

        Row i of x is at position p = length + i of its example, for the layer's masks, mods and gates and for those of
        the call.  Where no query sees a key after it (`masks.causal()`), decoding gives what the layer gives for the
        whole sequence at once, to rounding.  Nothing is dropped.

        Args:
          x: `[.., t, features]`.
          cache: from `layer.cache(n, batch)`, or from the call before.  Of the layer's own masks, mods and gates,
            arrays with an axis `t` or `s` have n there.
          mask: as in a call of the layer; an array with an axis `t` has that of x, and n at an axis `s`.
          mods: as in a call of the layer, with the same axes.
          gates: likewise.
          bias: likewise.
          positions: for the rotary embedding alone, in the place of p: numbers broadcastable to `[.., t]`.

        Returns:
          `[.., t, features]`, and the cache with t more positions.

        Raises:
          TypeError: x or the cache is of another type.
          ValueError: the cache is not one of this layer and batch, or has no room for t more positions.  Where the
            length is traced nobody can raise: then the rows past the end are NaN, and their keys are dropped.

        >>> import jax.numpy as jnp, jattn
        >>> from flax import nnx
        >>> layer = jattn.nn.MultiHeadAttention(32, 4, mask=jattn.masks.causal(), rotary_base=1e4, rngs=nnx.Rngs(0))
        >>> x = jnp.ones((8, 5, 32))
        >>> prompt, cache = layer.decode(x[:, :4], layer.cache(100, batch=(8,)))
        >>> last, cache = layer.decode(x[:, 4:], cache)
        >>> bool(jnp.allclose(last, layer(x)[:, 4:], atol=1e-5)), cache.length.shape
        (True, (8,))
        """
        asked = Asked(mask, mods, gates, bias)
        step = _decoding.step(self._projections(), x, cache, self._own_options(), asked, positions)
        out = self.out(batched(api.attention, step.query, step.cache.key, step.cache.value, step.options))
        return _decoding.dropped(out, step.fits), step.cache

    @modes.ordinary
    def read(self, context: Float[AnyArray, "*b s context_features"], *, positions: ArrayLike | None = None) -> Cache:
        """Keys and values of a context, projected once for any number of calls.

        `layer(x, layer.read(context))` is `layer(x, context)`.

        Args:
          context: `[.., s, context_features]`.
          positions: of the context, as `context_positions` in a call.

        Returns:
          Arrays `[.., s, kv_heads, head_dim]` and a length of s for each example.

        Raises:
          ValueError, TypeError: the context does not fit, or positions without a rotary embedding.
        """
        projections = self._projections()
        projections.check_context(context, positions)
        key, value = projections.keys_values(context, positions)
        return Cache(key, value, jnp.full(context.shape[:-2], context.shape[-2], jnp.int32))

    @property
    def rotary_base(self) -> float | None:
        """The base of the rotary embedding, where it has one."""
        return getattr(self.rotary, "base", None)

    def set_view(self, deterministic: bool | None = None) -> None:
        """What `nnx.view` calls.

        Args:
          deterministic: whether dropout is off; None leaves it as it is.
        """
        if deterministic is not None:
            self.deterministic = deterministic

    def _projections(self) -> Projections:
        return Projections(self.query, self.key, self.value, self.query_norm, self.key_norm, self.rotary)

    def _own_options(self) -> Options:
        """Options of `jattn.attention` that hold in every call."""
        own = {**self.held.fill(self.arrays), "precision": self.precision}
        return own if self.sinks is None else {**own, "sinks": self.sinks[...]}

    def _inputs(
        self,
        x: AnyArray,
        context: AnyArray | Cache | None,
        positions: ArrayLike | None,
        context_positions: ArrayLike | None,
        asked: Asked,
    ) -> tuple[Array, Array, Array, Options]:
        """Query, key and value, and the options of `jattn.attention` but for dropout."""
        projections = self._projections()
        projections.check(x, context, positions, context_positions)
        query = projections.queries(x, positions)
        if isinstance(context, Cache):
            key, value = context.key, context.value
        elif context is not None:
            key, value = projections.keys_values(context, context_positions)
        else:
            key, value = projections.keys_values(x, positions)
        _checks.check_padding(asked.mask, query.shape[-3], key.shape[-3], query.shape[:-3])
        options = asked.beside(self._own_options(), query.shape[:-3])
        if isinstance(context, Cache):
            options = join(options, masks.prefix(context.length.reshape(-1)))
        return query, key, value, options


def _sinks(sinks: bool | ArrayLike, heads: int, dtype: DTypeLike) -> Float[Array, "h"] | None:
    """The logits `[h]` that a layer's sinks start at, or None for none."""
    if isinstance(sinks, (bool, np.bool_)):
        return jnp.zeros(heads, dtype) if sinks else None
    if not _checks.is_array(sinks) or sinks.shape != (heads,) or sinks.dtype == bool:
        got = f"{sinks.dtype}{list(sinks.shape)}" if _checks.is_array(sinks) else repr(sinks)
        raise ValueError(f"sinks must be True, False, or an array [h] = [{heads}] of where they start, got {got}")
    return jnp.asarray(sinks, dtype)
