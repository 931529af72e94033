"""Multi-head attention with its projections, for Flax NNX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Unpack

import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import PrecisionLike
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int

from jattn import api, masks
from jattn._call import modes
from jattn._terms import plain
from jattn.nn import _checks, _decoding, _dropout
from jattn.nn._batching import batch_axes, batched
from jattn.nn._checks import AnyArray
from jattn.nn._hints import of_calls, of_layers
from jattn.nn._latent import Down, Latent, LatentProjections, check_latent, score_of
from jattn.nn._options import AnyMask, Asked, AttentionOptions, Gates, Held, Mods, Options, checked, hold, join
from jattn.nn._projections import Norm, Projections, UseBias, biases, norm_of
from jattn.nn._rotary import RotaryFn, embedding
from jattn.nn.cache._record import Cache

_OPTIONS = ("score", "normalizer", "mask", "mods", "gates", "implementation", "blocks")


class MultiHeadAttention(nnx.Module):
    """Multi-head attention (Vaswani et al. 2017): self-attention of x, or cross-attention from x to a context c.

        q = x Wq + bq,  k = c Wk + bk,  v = u Wv + bv            (c = x without a context, u = c without values)
        q = rotary(norm(q)),  k = rotary(norm(k))                (where asked for)
        out = jattn.attention(q, k, v, ...) Wo + bo

    Args:
      features: width of x and of the output.
      heads: query heads h.
      kv_heads: key and value heads g, h by default; h is a multiple of g (grouped queries, Ainslie et al. 2023).
      head_dim: width d of a head, features / heads by default.
      value_dim: width e of a head's values, `head_dim` by default.
      out_features: width of the output, `features` by default.
      context_features: width of the context, `features` by default.
      value_features: width of what values are made of, `context_features` by default.
      latent: `jattn.nn.Latent`, for keys and values of all heads that are made of one short vector (MLA).
      rotary_base: rotary position embedding with this base, as in `jattn.nn.rotary` (RoFormer, Su et al. 2021, who take
        10_000.0); None for none.
      rotary: in its place, a `jattn.nn.Rotary`, or any function of queries or keys `[.., n, h, d]` and positions, or
        None, that gives as many; a module of Flax is one, and learns.
      qk_norm: True divides each query and each key by its root mean square and multiplies by a learned scale `[d]`,
        before the rotary embedding (Dehghani et al. 2023; Zhang & Sennrich 2019); or another norm: `nnx.LayerNorm`,
        `jattn.nn.L2Norm` (Henry et al. 2020), or what is made like them.
      sinks: gives every head a learned logit in the softmax's denominator (Xiao et al. 2024; gpt-oss), at first 0, or
        what an array `[h]` says.
      dropout: rate at which attention weights are dropped, in [0, 1), while not `deterministic`.
      deterministic: whether dropout is off.  `model.train()` and `model.eval()` set it.
      use_bias: whether the projections add bq, bk, bv and bo; or the names of those that do: ("query", "key", "value")
        as in Qwen 2, ("query", "value", "out") as in Whisper.  With `latent`, projections to latents have that of
        queries and that of keys, those from latents have none.
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
      `query.kernel` `[features, h, d]`, `key.kernel` `[context_features, g, d]`, `value.kernel`
      `[value_features, g, e]`, `out.kernel` `[h, e, out_features]`; `query.bias` `[h, d]`, `key.bias` `[g, d]`,
      `value.bias` `[g, e]`, `out.bias` `[out_features]`; `query_norm.scale` and `key_norm.scale` `[d]`; `sinks` `[h]`;
      `arrays[n]`, those of the options that learn, with n their place among all in pytree order.
      With `latent`: `query.kernel` `[features or query_rank, h, d + rotary_dim]`, `latent.down.kernel`
      `[context_features, rank + rotary_dim]`, `latent.norm.scale` `[rank]`, `key.kernel` `[rank, h, d]`,
      `value.kernel` `[rank, h, e]`; `query_latent.down.kernel` `[features, query_rank]`, `query_latent.norm.scale`.
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
    value_dim: int
    out_features: int
    context_features: int
    rotary: RotaryFn | None
    dropout: float
    deterministic: bool
    precision: PrecisionLike
    cache_dtype: DTypeLike
    query: nnx.LinearGeneral
    key: nnx.LinearGeneral
    value: nnx.LinearGeneral
    out: nnx.LinearGeneral
    query_norm: Callable[[Array], Array] | None
    key_norm: Callable[[Array], Array] | None
    latent: Down | None
    query_latent: Down | None
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
        value_dim: int | None = None,
        out_features: int | None = None,
        context_features: int | None = None,
        value_features: int | None = None,
        latent: Latent | None = None,
        rotary_base: float | None = None,
        rotary: RotaryFn | None = None,
        qk_norm: bool | Norm = False,
        sinks: bool | ArrayLike = False,
        dropout: float = 0.0,
        deterministic: bool = False,
        use_bias: UseBias = True,
        kernel_init: nnx.Initializer = nnx.initializers.lecun_normal(),  # noqa: B008
        out_kernel_init: nnx.Initializer | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: PrecisionLike = None,
        rngs: nnx.Rngs,
        **options: Unpack[AttentionOptions],
    ):
        _checks.check_rngs(rngs)
        _checks.check_flags(deterministic=deterministic)
        _checks.check_rate(dropout)
        self.features, self.heads = features, heads
        self.kv_heads = heads if kv_heads is None else kv_heads
        _checks.check_sizes(features=features, heads=heads, kv_heads=self.kv_heads)
        if heads % self.kv_heads:
            raise ValueError(f"heads must be a multiple of kv_heads, got heads = {heads}, kv_heads = {self.kv_heads}")
        if head_dim is None:
            _checks.check_divides(features, heads)
        self.head_dim = features // heads if head_dim is None else head_dim
        self.value_dim = self.head_dim if value_dim is None else value_dim
        self.out_features = features if out_features is None else out_features
        self.context_features = source = features if context_features is None else context_features
        values = source if value_features is None else value_features
        _checks.check_sizes(head_dim=self.head_dim, value_dim=self.value_dim, out_features=self.out_features)
        _checks.check_sizes(context_features=source, value_features=values)
        bias, norm = biases(use_bias), norm_of(qk_norm)
        check_latent(latent, heads, self.kv_heads, norm, value_features)
        self.rotary = embedding(rotary, rotary_base, self.head_dim if latent is None else latent.rotary_dim)
        self.dropout, self.deterministic = dropout, deterministic
        self.precision = precision
        self.cache_dtype = param_dtype if dtype is None else dtype
        kinds = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        product = {"kernel_init": kernel_init, "precision": precision, **kinds}
        into_query, into_key, into_value, query_width = features, source, values, self.head_dim
        self.latent, self.query_latent = nnx.data(None), nnx.data(None)
        if latent is not None:
            self.latent, self.query_latent = latent.make(features, source, bias, product)
            into_query, into_key, into_value = latent.query_rank or features, latent.rank, latent.rank
            query_width += latent.rotary_dim
            bias = latent.biases(bias)
            options["score"] = score_of(options.get("score"), query_width)

        def project(name: str, source: int, heads: int, width: int) -> nnx.LinearGeneral:
            return nnx.LinearGeneral(source, (heads, width), use_bias=bias[name], **product)

        self.query = project("query", into_query, heads, query_width)
        self.key = project("key", into_key, self.kv_heads, self.head_dim)
        self.value = project("value", into_value, self.kv_heads, self.value_dim)
        product["kernel_init"] = out_kernel_init or kernel_init
        self.out = nnx.LinearGeneral(
            (heads, self.value_dim), self.out_features, axis=(-2, -1), use_bias=bias["out"], **product
        )
        self.query_norm, self.key_norm = (
            nnx.data(None if norm is None else norm(self.head_dim, **kinds)) for _ in range(2)
        )
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
        values: Float[AnyArray, "*b s value_features"] | None = None,
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
          values: `[.., s, value_features]`, what values are made of in the place of the context, or of x without one:
            `layer(x + p, values=x)` where p says where things are.
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
          `[.., t, out_features]`, in the layer's `dtype`.  A query that may attend to nothing gives the bias of the
          output.

        Raises:
          ValueError, TypeError: input that does not fit, or dropout without a stream of random keys.
        """
        asked = Asked(mask, mods, gates, bias)
        query, key, value, options = self._inputs(x, context, values, positions, context_positions, asked)
        if self.dropout > 0 and not (self.deterministic if deterministic is None else deterministic):
            options["dropout"] = _dropout.drawn(self.dropout, self.rngs, rngs)
        out = batched(api.attention, query, key, value, options)
        return self.out(self._projections().from_cache(out) if isinstance(context, Cache) else out)

    @of_calls
    @modes.ordinary
    def weights(
        self,
        x: Float[AnyArray, "*b t features"],
        context: Float[AnyArray, "*b s context_features"] | Cache | None = None,
        *,
        values: Float[AnyArray, "*b s value_features"] | None = None,
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
          values: likewise.
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
        return batched(api.weights, *self._inputs(x, context, values, positions, context_positions, asked))

    def cache(
        self,
        n: int | np.integer,
        batch: int | np.integer | Sequence[int | np.integer] = (),
        dtype: DTypeLike | None = None,
        *,
        slack: int | None = None,
        page: int | None = None,
        pages: int | None = None,
    ) -> Cache:
        """Room for the keys and values of n positions: what `decode` starts from.

        Args:
          n: the most positions that will be decoded.
          batch: the batch axes of x; an int for one axis.
          dtype: in which keys and values are kept, by default the layer's `dtype`, or else that of its parameters.
            Those of int8, float8_e4m3fn and float8_e5m2 have a scale for each head and position.  Rounding to int8 has
            no derivative: gradients reach such keys and values by their scales alone.
          slack: where the layer's own mask has a window to the left, keeps only as many positions as it reaches and
            this many more: when they are used up, those that no query can see any more make room.  Any number of
            positions may be decoded, at the positions where they are.  None keeps all n.
          page: keeps positions in pages of so many, which examples along the last batch axis share, where `slack` does
            not say otherwise: an example takes a page when it needs one, and `jattn.nn.cache.fork` lets others hold
            it too.  n is rounded up to whole pages.
          pages: how many pages there are, by default enough for n positions of all examples.

        Returns:
          Arrays `[*batch, n, kv_heads, head_dim]` and `[*batch, n, kv_heads, value_dim]` and a length of 0 for each
          example.  With `latent`, `[*batch, n, 1, rank + rotary_dim]`, and values of width 0: they are the latents.

        Raises:
          ValueError: n, a batch axis, the slack or a number of pages is no such number; a dtype that is neither a float
            of 16 bits or more nor one of these three.
        """
        return self._cache(_decoding.window(self._own_options()), n, batch, dtype, slack, page, pages)

    @of_calls
    @modes.ordinary
    def decode(
        self,
        x: Float[AnyArray, "*b t features"],
        cache: Cache,
        *,
        values: Float[AnyArray, "*b t value_features"] | None = None,
        mask: AnyMask = None,
        mods: Mods = (),
        gates: Gates = (),
        bias: ArrayLike | None = None,
        positions: ArrayLike | None = None,
        lengths: Int[ArrayLike, "*b"] | None = None,
        parents: Int[ArrayLike, "*b t"] | Sequence[int] | None = None,
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
          values: as in a call of the layer, of these t positions.
          mask: as in a call of the layer; an array with an axis `t` has that of x, and n at an axis `s`.
          mods: as in a call of the layer, with the same axes.
          gates: likewise.
          bias: likewise.
          positions: for the rotary embedding alone, in the place of p: numbers broadcastable to `[.., t]`.
          lengths: integers `[..]`, how many of the t positions of each example are real, where others have more: a
            prompt beside examples that go on by a token.  What comes after them is not kept; 0 leaves an example as it
            is.  Where they are traced, one that is not from 0 to t is taken for the nearest, and the rows of its
            example are NaN.
          parents: where the t positions are drafts of which one path will be kept (`jattn.nn.cache.accept`): for each
            the draft before it, integers `[t]` or `[.., t]`, -1 for what comes right after the cache.  A draft sees the
            cache and its ancestors, and gives what it gives where they alone are decoded: p is length + how many they
            are, of its query and its key, for the rotary embedding and for masks, mods and gates, and arrays of the
            layer's own have what they have at p.  Arrays of the call have a row for each draft and each row of the
            cache.  Tables of relative positions and `masks.blocks` are looked up for each pair: memory O(t * s).

        Returns:
          `[.., t, features]`, and the cache with t more positions, or `lengths`.

        Raises:
          TypeError: x or the cache is of another type.
          ValueError: the cache is not one of this layer and batch, or has no room or no free page for t more positions;
            or it slides, and was shortened to before what it keeps.  Where the length is traced nobody can raise: then
            the rows past the end, or all of them, are NaN, and keys past the end are dropped.
            Parents that are none.  Lengths that are known not to be from 0 to t.

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
        return self._decoded(self._own_options(), x, cache, asked, positions, values, lengths, parents)

    @modes.ordinary
    def read(
        self,
        context: Float[AnyArray, "*b s context_features"],
        *,
        values: Float[AnyArray, "*b s value_features"] | None = None,
        positions: ArrayLike | None = None,
    ) -> Cache:
        """Keys and values of a context, projected once for any number of calls.

        `layer(x, layer.read(context))` is `layer(x, context)`.

        Args:
          context: `[.., s, context_features]`.
          values: as in a call.
          positions: of the context, as `context_positions` in a call.

        Returns:
          Arrays as those of `cache`, with room for s positions, and a length of s for each example.

        Raises:
          ValueError, TypeError: the context does not fit, or positions without a rotary embedding.
        """
        projections = self._projections()
        projections.check_context(context, positions, values)
        key, value = projections.kept(context, values, positions)
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
        parts = self.query, self.key, self.value, self.query_norm, self.key_norm, self.rotary
        return Projections(*parts) if self.latent is None else LatentProjections(*parts, self.latent, self.query_latent)

    def _own_options(self) -> Options:
        """Options of `jattn.attention` that hold in every call."""
        own = {**self.held.fill(self.arrays), "precision": self.precision}
        return own if self.sinks is None else {**own, "sinks": self.sinks[...]}

    def _decoded(
        self,
        own: Options,
        x: AnyArray,
        cache: Cache,
        asked: Asked,
        positions: ArrayLike | None,
        values: AnyArray | None,
        lengths: ArrayLike | None,
        parents: ArrayLike | Sequence[int] | None = None,
    ) -> tuple[Array, Cache]:
        """`decode`, with the layer's own options."""
        projections = self._projections()
        step = _decoding.step(projections, x, cache, own, asked, positions, values, lengths, parents)
        out = batched(api.attention, *projections.to_cache(step.query, step.seen), step.options)
        return _decoding.dropped(self.out(projections.from_cache(out)), step.fits), step.cache

    def _cache(self, left: int | None, n: Any, batch: Any, dtype: DTypeLike | None, *room: Any) -> Cache:
        """`cache`, where queries see no more than `left` positions before their own, None for all."""
        widths = self._projections().cache_widths()
        return _decoding.empty(left, n, batch_axes(batch), widths, dtype or self.cache_dtype, *room)

    def _inputs(
        self,
        x: AnyArray,
        context: AnyArray | Cache | None,
        values: AnyArray | None,
        positions: ArrayLike | None,
        context_positions: ArrayLike | None,
        asked: Asked,
    ) -> tuple[Array, Array, Array, Options]:
        """Query, key and value, and the options of `jattn.attention` but for dropout."""
        projections = self._projections()
        projections.check(x, context, positions, context_positions, values)
        query = projections.queries(x, positions)
        if isinstance(context, Cache):
            query, key, value = projections.to_cache(query, context)
        elif context is not None:
            key, value = projections.keys_values(context, values, context_positions)
        else:
            key, value = projections.keys_values(x, values, positions)
        _checks.check_padding(asked.mask, query.shape[-3], _keys(context, key), query.shape[:-3])
        options = asked.beside(self._own_options(), query.shape[:-3])
        if isinstance(context, Cache):
            options = {**options, **_decoding.stored(projections, context)}
            options = join(options, masks.prefix(context.length.reshape(-1)))
            if context.first is not None:
                options["positions"] = {"s": context.first.reshape(-1)}
        return query, key, value, options


def _keys(context: object, key: Array) -> int:
    """How many keys s a call has."""
    return context.room if isinstance(context, Cache) else key.shape[-3]


def _sinks(sinks: bool | ArrayLike, heads: int, dtype: DTypeLike) -> Float[Array, "h"] | None:
    """The logits `[h]` that a layer's sinks start at, or None for none."""
    sinks = plain(sinks)
    if isinstance(sinks, (bool, np.bool_)):
        return jnp.zeros(heads, dtype) if sinks else None
    if not _checks.is_array(sinks) or sinks.shape != (heads,) or sinks.dtype == bool:
        got = f"{sinks.dtype}{list(sinks.shape)}" if _checks.is_array(sinks) else repr(sinks)
        raise ValueError(f"sinks must be True, False, or an array [h] = [{heads}] of where they start, got {got}")
    return jnp.asarray(sinks, dtype)
