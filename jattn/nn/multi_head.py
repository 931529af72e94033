"""Multi-head attention with its projections, for Flax NNX."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jattn import api, gates, masks
from jattn.nn import _call
from jattn.nn._rotary import rotary

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
      sinks: gives every head a learned logit, at first 0, in the softmax's denominator (Xiao et al. 2024; gpt-oss).
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
        blocks.  Floating-point arrays in them become parameters and learn; give mods and gates that shall not at call.

    Parameters (`nnx.Param`):
      `query.kernel` `[features, h, d]`, `key.kernel` and `value.kernel` `[context_features, g, d]`, `out.kernel`
      `[h, d, features]`; `query.bias` `[h, d]`, `key.bias` and `value.bias` `[g, d]`, `out.bias` `[features]`;
      `query_norm.scale` and `key_norm.scale` `[d]`; `sinks` `[h]`; `arrays[n]`, those of the options in pytree order.
      The four projections are `nnx.LinearGeneral`: initialisers made with `nnx.with_partitioning` annotate kernels.

    Raises:
      ValueError: sizes that do not go together, a rate outside [0, 1), or dropout without an rng.
      TypeError: an unknown option.

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
        sinks: bool = False,
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
        self.features, self.heads = features, heads
        self.kv_heads = heads if kv_heads is None else kv_heads
        self.context_features = features if context_features is None else context_features
        _check_sizes(features, heads, self.kv_heads, head_dim, rotary_base, dropout)
        self.head_dim = features // heads if head_dim is None else head_dim
        self.rotary_base, self.dropout, self.deterministic = rotary_base, dropout, deterministic
        self.precision = precision

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
        self.sinks = nnx.data(nnx.Param(jnp.zeros(heads, param_dtype)) if sinks else None)
        self.rngs = nnx.data(rngs["dropout"].fork() if dropout > 0 and _has_dropout(rngs) else None)
        leaves, self.structure = jax.tree.flatten(_call.check_names(options, _OPTIONS, "MultiHeadAttention"))
        self.arrays = nnx.List([_variable(x) for x in leaves if _is_array(x)])
        self.static = tuple(None if _is_array(x) else x for x in leaves)  # with None where an array belongs

    def __call__(
        self,
        x: Float[Array, "*b t features"],
        context: Float[Array, "*b s context_features"] | None = None,
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
          context: `[.., s, context_features]`, with the same batch axes.
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
        self._check_inputs(x, context, positions, context_positions)
        query, key, value = self._project(x, context, positions, context_positions)
        lead = query.shape[:-3]
        if mask is not None and not isinstance(mask, masks.Mask):
            mask = masks.dense(_call.merge_lead(mask, lead, "mask"))
        asked = _call.join(self._options(), mask, mods, gates)
        asked["precision"] = self.precision
        if bias is not None:
            asked["bias"] = _call.merge_lead(bias, lead, "bias")
        if self.sinks is not None:
            asked["sinks"] = self.sinks[...]
        if self.dropout > 0 and not (self.deterministic if deterministic is None else deterministic):
            asked["dropout"] = self._dropout(rngs)
        return self.out(_call.batched(api.attention, query, key, value, asked))

    def set_view(self, deterministic: bool | None = None) -> None:
        """What `nnx.view` calls.

        Args:
          deterministic: whether dropout is off.
        """
        if deterministic is not None:
            self.deterministic = deterministic

    def _project(self, x: Any, context: Any, positions: Any, context_positions: Any) -> tuple[Any, Any, Any]:
        """Query `[.., t, h, d]`, key and value `[.., s, g, d]`, all that comes before the attention."""
        if context is None:
            context, context_positions = x, positions
        query, key, value = self.query(x), self.key(context), self.value(context)
        if self.query_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if self.rotary_base is not None:
            query = rotary(query, positions, self.rotary_base)
            key = rotary(key, context_positions, self.rotary_base)
        return query, key, value

    def _options(self) -> dict[str, Any]:
        arrays = iter(self.arrays)
        return jax.tree.unflatten(self.structure, [next(arrays)[...] if x is None else x for x in self.static])

    def _dropout(self, rngs: Any) -> gates.Gate:
        rngs = self.rngs if rngs is None else rngs
        if rngs is None or (isinstance(rngs, nnx.Rngs) and not _has_dropout(rngs)):
            raise ValueError(
                f"dropout = {self.dropout} needs a stream of random keys: make the layer, or call it, with"
                " rngs=nnx.Rngs(dropout=0), or turn dropout off with eval() or deterministic=True"
            )
        random_key = rngs["dropout"]() if isinstance(rngs, nnx.Rngs) else rngs()
        return gates.dropout(self.dropout, jax.random.bits(random_key, dtype=jnp.uint32))

    def _check_inputs(self, x: Any, context: Any, positions: Any, context_positions: Any) -> None:
        for name, array, width in (("x", x, self.features), ("context", context, self.context_features)):
            if array is None:
                continue
            if jnp.ndim(array) < 2 or jnp.shape(array)[-1] != width:
                wanted = f"[.., {'t' if name == 'x' else 's'}, {width}]"
                raise ValueError(f"{name} must be {wanted}, got shape {list(jnp.shape(array))}")
        if context is not None and x.shape[:-2] != context.shape[:-2]:
            raise ValueError(
                f"x and context must have the same batch axes, got x {list(x.shape)}, context {list(context.shape)}"
            )
        if self.rotary_base is None and not (positions is None and context_positions is None):
            raise ValueError("positions are those of the rotary embedding: make the layer with rotary_base=10_000.0")
        if context is None and context_positions is not None:
            raise ValueError("context_positions was given without a context")


def _check_sizes(
    features: int, heads: int, kv_heads: int, head_dim: int | None, rotary_base: float | None, dropout: float
) -> None:
    """Raises unless the sizes of a layer go together."""
    if heads < 1 or kv_heads < 1 or heads % kv_heads:
        raise ValueError(f"heads must be a multiple of kv_heads, got heads = {heads}, kv_heads = {kv_heads}")
    if head_dim is None and features % heads:
        raise ValueError(
            f"features must be a multiple of heads, got features = {features}, heads = {heads}; or give head_dim"
        )
    if rotary_base is not None:
        if isinstance(rotary_base, bool) or not rotary_base > 0:
            raise ValueError(f"rotary_base must be a number > 0, like 10_000.0, or None, got {rotary_base!r}")
        width = features // heads if head_dim is None else head_dim
        if width % 2:
            raise ValueError(f"rotary_base needs an even head_dim, got {width}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be a rate in [0, 1), got {dropout!r}")


def _has_dropout(rngs: nnx.Rngs) -> bool:
    return "dropout" in rngs or "default" in rngs


def _is_array(x: Any) -> bool:
    return isinstance(x, (jax.Array, np.ndarray))


def _variable(array: Any) -> nnx.Variable:
    """Floating-point arrays learn; ids, lengths and seeds do not."""
    array = jnp.asarray(array)
    return nnx.Param(array) if jnp.issubdtype(array.dtype, jnp.floating) else nnx.Variable(array)
