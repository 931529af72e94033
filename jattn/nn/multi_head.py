"""Multi-head attention with its projections, for Flax NNX."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jattn import api, gates, masks
from jattn._call import modes, shifts
from jattn.nn import _cache, _call
from jattn.nn._cache import Cache
from jattn.nn._hints import of_calls, of_layers
from jattn.nn._rotary import check_base, rotary

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
    """

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
        qk_norm: bool = False,
        sinks: bool | ArrayLike = False,
        dropout: float = 0.0,
        deterministic: bool = False,
        use_bias: bool = True,
        kernel_init: Any = nnx.initializers.lecun_normal(),  # noqa: B008
        out_kernel_init: Any = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        precision: Any = None,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        _call.check_rngs(rngs)
        _call.check_flags(qk_norm=qk_norm, deterministic=deterministic, use_bias=use_bias)
        _call.check_rate(dropout)
        self.features, self.heads = features, heads
        self.kv_heads = heads if kv_heads is None else kv_heads
        self.context_features = features if context_features is None else context_features
        _check_sizes(features, heads, self.kv_heads, head_dim, self.context_features)
        self.head_dim = features // heads if head_dim is None else head_dim
        _check_rotary(rotary_base, self.head_dim)
        self.rotary_base, self.dropout, self.deterministic = rotary_base, dropout, deterministic
        self.precision = precision
        self.cache_dtype = param_dtype if dtype is None else dtype

        def project(source: Any, target: Any, init: Any, axis: Any = -1) -> nnx.LinearGeneral:
            return nnx.LinearGeneral(
                source, target, axis=axis, use_bias=use_bias, kernel_init=init,
                dtype=dtype, param_dtype=param_dtype, precision=precision, rngs=rngs,
            )  # fmt: skip

        def norm() -> Any:
            if not qk_norm:
                return nnx.data(None)
            return nnx.RMSNorm(self.head_dim, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

        self.query = project(features, (heads, self.head_dim), kernel_init)
        self.key = project(self.context_features, (self.kv_heads, self.head_dim), kernel_init)
        self.value = project(self.context_features, (self.kv_heads, self.head_dim), kernel_init)
        self.out = project((heads, self.head_dim), features, out_kernel_init or kernel_init, axis=(-2, -1))
        self.query_norm, self.key_norm = norm(), norm()
        logits = _sinks(sinks, heads, param_dtype)
        self.sinks = nnx.data(None if logits is None else nnx.Param(logits))
        self.rngs = nnx.data(rngs["dropout"].fork() if dropout > 0 and _has_dropout(rngs) else None)
        self.arrays, self.held = _call.hold(_call.check_names(options, _OPTIONS, "MultiHeadAttention"))

    @of_calls
    @modes.ordinary
    def __call__(
        self,
        x: Float[Array, "*b t features"],
        context: Float[Array, "*b s context_features"] | Cache | None = None,
        *,
        mask: Any = None,
        mods: Any = (),
        gates: Any = (),
        bias: Any = None,
        positions: Any = None,
        context_positions: Any = None,
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
          mods, gates: from `jattn.mods` and `jattn.gates`; they come after the layer's own.
          bias: array broadcastable to `[.., h, t, s]`, added to the scaled score.
          positions: of x, for the rotary embedding alone: numbers broadcastable to `[.., t]`, 0, 1, ... by default.
          context_positions: of the context, `[.., s]`, 0, 1, ... by default.
          deterministic: in the place of the layer's own.
          rngs: where this call's dropout comes from, in the place of the layer's own stream.

        Returns:
          `[.., t, features]`.
        """
        query, key, value, asked = self._inputs(x, context, positions, context_positions, mask, mods, gates, bias)
        if self.dropout > 0 and not (self.deterministic if deterministic is None else deterministic):
            asked["dropout"] = self._dropout(rngs)
        return self.out(_call.batched(api.attention, query, key, value, asked))

    @of_calls
    @modes.ordinary
    def weights(
        self,
        x: Float[Array, "*b t features"],
        context: Float[Array, "*b s context_features"] | Cache | None = None,
        *,
        mask: Any = None,
        mods: Any = (),
        gates: Any = (),
        bias: Any = None,
        positions: Any = None,
        context_positions: Any = None,
    ) -> Float[Array, "*b h t s"]:
        """The weights with which a call with the same arguments attends, without dropout: for looking at, O(t * s)
        memory.

        Args:
          x, context, mask, mods, gates, bias, positions, context_positions: as in a call of the layer.

        Returns:
          `[.., h, t, s]`.
        """
        query, key, value, asked = self._inputs(x, context, positions, context_positions, mask, mods, gates, bias)
        return _call.batched(api.weights, query, key, value, asked)

    def cache(self, n: int, batch: int | tuple[int, ...] = (), dtype: Any = None) -> Cache:
        """Room for the keys and values of n positions: what `decode` starts from.

        Args:
          n: the most positions that will be decoded.
          batch: the batch axes of x; an int for one axis.
          dtype: in which keys and values are kept, by default the layer's `dtype`, or else that of its parameters.

        Returns:
          Arrays `[*batch, n, kv_heads, head_dim]` and a length of 0 for each example.
        """
        if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
            raise ValueError(f"n must be an int >= 1, got {n!r}")
        return _cache.empty(_call.batch_axes(batch), int(n), self.kv_heads, self.head_dim, dtype or self.cache_dtype)

    @of_calls
    @modes.ordinary
    def decode(
        self,
        x: Float[Array, "*b t features"],
        cache: Cache,
        *,
        mask: Any = None,
        mods: Any = (),
        gates: Any = (),
        bias: Any = None,
        positions: Any = None,
    ) -> tuple[Float[Array, "*b t features"], Cache]:
        """Self-attention of the next t positions, to themselves and to all that the cache holds: one token, a few, or a
        whole prompt.

        Row i of x is at position p = length + i of its example, for the layer's masks, mods and gates and for those of
        the call.  Where no query sees a key after it (`masks.causal()`), decoding gives what the layer gives for the
        whole sequence at once, to rounding.  Nothing is dropped.

        Args:
          x: `[.., t, features]`.
          cache: from `layer.cache(n, batch)`, or from the call before.  Of the layer's own masks, mods and gates,
            arrays with an axis `t` or `s` have n there.
          mask, mods, gates, bias: as in a call of the layer; arrays with an axis `t` have that of x, and n at an axis
            `s`.
          positions: for the rotary embedding alone, in the place of p: numbers broadcastable to `[.., t]`.

        Returns:
          `[.., t, features]`, and the cache with t more positions.

        Raises:
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
        self._check_inputs(x, None, positions, None)
        lead, t = x.shape[:-2], x.shape[-2]
        _cache.check(cache, lead, self.kv_heads, self.head_dim)
        _cache.check_room(cache, t)
        at = cache.positions(t)
        query, key, value = self._project(x, None, at if positions is None else positions, None)
        start, n = cache.length.reshape(-1), cache.room
        cache = _cache.append(cache, key, value)
        sizes = {"b": len(start), "h": self.heads, "t": n, "s": n}
        own = shifts.cut(self.held.fill(self.arrays), start, t, sizes)
        _call.check_padding(mask, t, n, lead)
        asked = shifts.shift(self._asked(own, lead, mask, mods, gates, bias), start)
        asked = _call.join(asked, masks.prefix(start + t))
        out = self.out(_call.batched(api.attention, query, cache.key, cache.value, asked))
        return jnp.where((at < n)[..., None], out, jnp.nan), cache

    @modes.ordinary
    def read(self, context: Float[Array, "*b s context_features"], *, positions: Any = None) -> Cache:
        """Keys and values of a context: `layer(x, layer.read(context))` is `layer(x, context)`, and the context is
        projected once for any number of calls.

        Args:
          context: `[.., s, context_features]`.
          positions: of the context, as `context_positions` in a call.
        """
        self._check_inputs(None, context, None, positions)
        key, value = self._read(context, positions)
        return Cache(key, value, jnp.full(context.shape[:-2], context.shape[-2], jnp.int32))

    def set_view(self, deterministic: bool | None = None) -> None:
        """What `nnx.view` calls.

        Args:
          deterministic: whether dropout is off.
        """
        if deterministic is not None:
            self.deterministic = deterministic

    def _inputs(self, x: Any, context: Any, positions: Any, context_positions: Any, *asked: Any) -> tuple[Any, ...]:
        """Query, key and value, and the options of `jattn.attention` but for dropout."""
        self._check_inputs(x, context, positions, context_positions)
        query, key, value = self._project(x, context, positions, context_positions)
        _call.check_padding(asked[0], query.shape[-3], key.shape[-3], query.shape[:-3])
        options = self._asked(self.held.fill(self.arrays), query.shape[:-3], *asked)
        if isinstance(context, Cache):
            options = _call.join(options, masks.prefix(context.length.reshape(-1)))
        return query, key, value, options

    def _project(self, x: Any, context: Any, positions: Any, context_positions: Any) -> tuple[Any, Any, Any]:
        """Query `[.., t, h, d]`, key and value `[.., s, g, d]`, all that comes before the attention."""
        query = self.query(x)
        if self.query_norm is not None:
            query = self.query_norm(query)
        if self.rotary_base is not None:
            query = rotary(query, positions, self.rotary_base)
        if isinstance(context, Cache):
            return query, context.key, context.value
        return query, *(self._read(x, positions) if context is None else self._read(context, context_positions))

    def _read(self, context: Any, positions: Any) -> tuple[Any, Any]:
        key, value = self.key(context), self.value(context)
        if self.key_norm is not None:
            key = self.key_norm(key)
        if self.rotary_base is not None:
            key = rotary(key, positions, self.rotary_base)
        return key, value

    def _asked(self, own: _call.Options, lead: tuple[int, ...], mask: Any, mods: Any, gates: Any, bias: Any) -> Any:
        """Options of `jattn.attention`: the layer's own and those of a call, but for dropout."""
        asked = _call.join(own, mask, mods, gates, lead)
        asked["precision"] = self.precision
        if bias is not None:
            asked["bias"] = _call.merge_lead(bias, lead, "bias")
        if self.sinks is not None:
            asked["sinks"] = self.sinks[...]
        return asked

    def _dropout(self, rngs: Any) -> gates.Gate:
        _call.check_call_rngs(rngs)
        rngs = self.rngs if rngs is None else rngs
        if rngs is None or (isinstance(rngs, nnx.Rngs) and not _has_dropout(rngs)):
            raise ValueError(
                f"dropout = {self.dropout} needs a stream of random keys: make the layer, or call it, with"
                " rngs=nnx.Rngs(dropout=0), or turn dropout off with eval() or deterministic=True"
            )
        random_key = rngs["dropout"]() if isinstance(rngs, nnx.Rngs) else rngs()
        return gates.dropout(self.dropout, jax.random.bits(random_key, dtype=jnp.uint32))

    def _check_inputs(self, x: Any, context: Any, positions: Any, context_positions: Any) -> None:
        """Raises unless these fit the layer and each other; x is None where there is a context alone."""
        cached = isinstance(context, Cache)
        if x is not None:
            _call.check_array(x, "x", "t", self.features)
        lead: Any = None if x is None else x.shape[:-2]
        if cached:
            _cache.check(context, lead, self.kv_heads, self.head_dim)
        elif context is not None:
            _call.check_array(context, "context", "s", self.context_features)
            if lead not in (None, context.shape[:-2]):
                got = f"got x {list(getattr(x, 'shape', ()))}, context {list(context.shape)}"
                raise ValueError(f"x and context must have the same batch axes, {got}")
        if self.rotary_base is None and not (positions is None and context_positions is None):
            raise ValueError("positions are those of the rotary embedding: make the layer with rotary_base=10_000.0")
        if context_positions is not None and (context is None or cached):
            raise ValueError(f"context_positions was given {'with a cache' if cached else 'without a context'}")


def _check_sizes(features: Any, heads: Any, kv_heads: Any, head_dim: Any, context_features: Any) -> None:
    """Raises unless the sizes of a layer go together."""
    _call.check_sizes(features=features, heads=heads, kv_heads=kv_heads, context_features=context_features)
    if heads % kv_heads:
        raise ValueError(f"heads must be a multiple of kv_heads, got heads = {heads}, kv_heads = {kv_heads}")
    if head_dim is not None:
        _call.check_sizes(head_dim=head_dim)
    elif features % heads:
        raise ValueError(
            f"features must be a multiple of heads, got features = {features}, heads = {heads}; or give head_dim"
        )


def _check_rotary(base: Any, head_dim: int) -> None:
    """Raises unless the base of a rotary embedding is a number and fits the width of a head."""
    if base is None:
        return
    check_base(base, "rotary_base")
    if head_dim % 2:
        raise ValueError(f"rotary_base needs an even head_dim, got {head_dim}")


def _sinks(sinks: Any, heads: int, dtype: Any) -> Any:
    """The logits `[h]` that a layer's sinks start at, or None for none."""
    if isinstance(sinks, (bool, np.bool_)):
        return jnp.zeros(heads, dtype) if sinks else None
    if not isinstance(sinks, (jax.Array, np.ndarray)) or sinks.shape != (heads,) or sinks.dtype == bool:
        got = f"{sinks.dtype}{list(sinks.shape)}" if hasattr(sinks, "shape") else repr(sinks)
        raise ValueError(f"sinks must be True, False, or an array [h] = [{heads}] of where they start, got {got}")
    return jnp.asarray(sinks, dtype)


def _has_dropout(rngs: nnx.Rngs) -> bool:
    return "dropout" in rngs or "default" in rngs
