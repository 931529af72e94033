"""What comes before the attention of a layer: from x to queries, from a context to keys and values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jattn._call import modes
from jattn.nn import _checks
from jattn.nn._checks import AnyArray
from jattn.nn._rotary import RotaryFn
from jattn.nn.cache import _kinds
from jattn.nn.cache._record import Cache

NAMES = ("query", "key", "value", "out")
UseBias: TypeAlias = bool | Collection[str]
"""Whether projections add a bias: all, none, or those that are named."""
Norm: TypeAlias = Callable[..., Callable[[Array], Array]]
"""`nnx.LayerNorm`, `nnx.RMSNorm`, or what is made like them."""


@dataclasses.dataclass(frozen=True)
class Projections:
    """The parts of a `MultiHeadAttention` that make queries, keys and values.

    Attributes:
      query: x `[.., t, features]` to `[.., t, h, d]`.
      key: context `[.., s, context_features]` to `[.., s, g, d]`.
      value: values `[.., s, value_features]` to `[.., s, g, e]`.
      query_norm: of `[.., t, h, d]`, or None.
      key_norm: of `[.., s, g, d]`, or None.
      rotary: turns queries and keys by their positions, or None for none.
    """

    query: nnx.LinearGeneral
    key: nnx.LinearGeneral
    value: nnx.LinearGeneral
    query_norm: Callable[[Array], Array] | None
    key_norm: Callable[[Array], Array] | None
    rotary: RotaryFn | None

    def queries(self, x: Float[AnyArray, "*b t f"], positions: ArrayLike | None) -> Float[Array, "*b t h d"]:
        """Queries, normalised and rotated."""
        return self._placed(self.query(jnp.asarray(x)), self.query_norm, positions)

    def keys_values(
        self, context: Float[AnyArray, "*b s f"], values: Float[AnyArray, "*b s v"] | None, positions: ArrayLike | None
    ) -> tuple[Float[Array, "*b s g d"], Float[Array, "*b s g e"]]:
        """Keys, normalised and rotated, and values: of the context, where they are not made of something else."""
        context = jnp.asarray(context)
        key = self._placed(self.key(context), self.key_norm, positions)
        return key, self.value(context if values is None else jnp.asarray(values))

    def kept(
        self, context: Float[AnyArray, "*b s f"], values: Float[AnyArray, "*b s v"] | None, positions: ArrayLike | None
    ) -> tuple[Float[Array, "*b s g d"], Float[Array, "*b s g e"]]:
        """What a cache keeps of a context."""
        return self.keys_values(context, values, positions)

    def to_cache(self, query: Float[Array, "*b t h d"], cache: Cache) -> tuple[Array, Array, Array]:
        """Query, key and value with which queries attend to what a cache keeps."""
        return query, cache.key, cache.value

    def cache_scales(self, cache: Cache) -> tuple[Array, Array] | None:
        """What those keys and values are to be multiplied with, None for nothing."""
        if cache.key_scale is None or cache.value_scale is None:
            return None
        return cache.key_scale, cache.value_scale

    def from_cache(self, out: Float[Array, "*b t h e"]) -> Float[Array, "*b t h e"]:
        """The output of the heads, of what attending to a cache gave."""
        return out

    def cache_widths(self) -> tuple[int, int, int]:
        """Heads, width of keys and width of values in a cache."""
        (heads, d), (_, e) = self.key.out_features, self.value.out_features
        return heads, d, e

    def in_features(self) -> tuple[int, int, int]:
        """Widths of x, of the context, and of what values are made of."""
        return self.query.in_features[0], self.key.in_features[0], self.value.in_features[0]

    def _placed(
        self, heads: Float[Array, "*b n h d"], norm: Callable[[Array], Array] | None, positions: ArrayLike | None
    ) -> Float[Array, "*b n h d"]:
        if norm is not None:
            heads = norm(heads)
        return heads if self.rotary is None else self.rotary(heads, positions)

    def check_x(self, x: AnyArray, positions: ArrayLike | None) -> None:
        """Raises unless x fits the layer, and positions are given to a rotary embedding alone."""
        _checks.check_array(x, "x", "t", self.in_features()[0])
        self._check_positions(positions)

    def check_context(self, context: AnyArray, positions: ArrayLike | None, values: AnyArray | None = None) -> None:
        """Raises unless a context and its values fit, and positions are given to a rotary embedding alone."""
        _checks.check_array(context, "context", "s", self.in_features()[1])
        self.check_values(values, context, "context", "s")
        self._check_positions(positions)

    def check_cache(self, cache: Cache, x: AnyArray) -> None:
        """Raises unless the cache is one of this layer and of the batch of x."""
        _kinds.check(cache, x.shape[:-2], *self.cache_widths())

    def check(
        self,
        x: AnyArray,
        context: AnyArray | Cache | None,
        positions: ArrayLike | None = None,
        context_positions: ArrayLike | None = None,
        values: AnyArray | None = None,
    ) -> None:
        """Raises unless what a call is given fits the layer and goes together."""
        self.check_x(x, None)
        if context is None:
            self.check_values(values, x, "x", "t")
        elif isinstance(context, Cache):
            self.check_cache(context, x)
            if values is not None:
                raise ValueError("values was given with a cache, which has those that read(context, values=) was given")
        else:
            self.check_context(context, None, values)
            if x.shape[:-2] != context.shape[:-2]:
                got = f"got x {list(x.shape)}, context {list(context.shape)}"
                raise ValueError(f"x and context must have the same batch axes, {got}")
        self._check_positions(positions, context_positions)
        if context_positions is not None and (context is None or isinstance(context, Cache)):
            where = "without a context" if context is None else "with a cache"
            raise ValueError(f"context_positions was given {where}")

    def check_values(self, values: AnyArray | None, beside: AnyArray, name: str, axis: str) -> None:
        """Raises unless values are there where they must be, and fit what stands beside them."""
        _, keys, width = self.in_features()
        if values is not None:
            _checks.check_array(values, "values", axis, width)
            if values.shape[:-1] != beside.shape[:-1]:
                got = f"got values {list(values.shape)}, {name} {list(beside.shape)}"
                raise ValueError(f"values must have the axes [.., {axis}] of {name}, {got}")
        elif width != keys:
            raise ValueError(f"values must be given, [.., {axis}, {width}]: the layer was made with value_features")

    def _check_positions(self, *positions: ArrayLike | None) -> None:
        if self.rotary is None and any(x is not None for x in positions):
            raise ValueError("positions are those of the rotary embedding: make the layer with rotary_base=10_000.0")


class L2Norm(nnx.Module):
    """x / norm(x) * scale over the last axis: for `qk_norm=`, where scores then are cosines times what is learned.

    Args:
      features: width of the last axis.
      epsilon: a smaller norm counts as this one, so that a vector of zeros stays one.
      dtype: of the result; by default what x and the scale promote to.
      param_dtype: of the scale.
      scale_init: initialiser of the scale.
      rngs: for the initialiser.

    Parameters (`nnx.Param`):
      `scale` `[features]`.

    >>> import jax.numpy as jnp, jattn
    >>> from flax import nnx
    >>> from jattn import scores
    >>> jattn.nn.L2Norm(2, rngs=nnx.Rngs(0))(jnp.array([3.0, 4.0])).round(1).tolist()
    [0.6000000238418579, 0.800000011920929]
    >>> options = {"qk_norm": jattn.nn.L2Norm, "score": scores.dot(jnp.array(10.0))}  # a learned temperature
    >>> layer = jattn.nn.MultiHeadAttention(32, 4, **options, rngs=nnx.Rngs(0))

    Source: Henry et al. 2020, "Query-Key Normalization for Transformers".
    """

    epsilon: float
    dtype: jnp.dtype | None
    scale: nnx.Param[Array]

    def __init__(
        self,
        features: int,
        *,
        epsilon: float = 1e-6,
        dtype: jax.typing.DTypeLike | None = None,
        param_dtype: jax.typing.DTypeLike = jnp.float32,
        scale_init: nnx.Initializer = nnx.initializers.ones,
        rngs: nnx.Rngs,
    ):
        self.epsilon, self.dtype = epsilon, None if dtype is None else jnp.dtype(dtype)
        self.scale = nnx.Param(scale_init(rngs.params(), (features,), param_dtype))

    @modes.ordinary
    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """x / max(norm(x), epsilon) * scale.

        Args:
          x: `[.., features]`.

        Returns:
          Of x's shape; the norm is computed in float32 or wider.
        """
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        squares = jnp.sum(wide * wide, axis=-1, keepdims=True)
        scale = self.scale[...]
        out = wide * jax.lax.rsqrt(jnp.maximum(squares, self.epsilon**2)) * scale
        return out.astype(jnp.promote_types(x.dtype, scale.dtype) if self.dtype is None else self.dtype)


def biases(use_bias: UseBias, names: tuple[str, ...] = NAMES) -> dict[str, bool]:
    """For each name, whether that projection adds a bias.

    Raises:
      TypeError: `use_bias` is neither a flag nor names.
      ValueError: a name that is none.
    """
    if isinstance(use_bias, (bool, np.bool_)):
        return dict.fromkeys(names, bool(use_bias))
    given = [use_bias] if isinstance(use_bias, str) or not isinstance(use_bias, Collection) else list(use_bias)
    if isinstance(use_bias, str) or not all(isinstance(x, str) for x in given):
        raise TypeError(f"use_bias must be True or False, or some of {names}, got {use_bias!r}")
    unknown = [x for x in given if x not in names]
    if unknown:
        raise ValueError(f"use_bias must name some of {', '.join(names)}, got {', '.join(map(repr, unknown))}")
    return {name: name in given for name in names}


def norm_of(qk_norm: bool | Norm) -> Norm | None:
    """What makes the norms of queries and keys, or None for none."""
    if isinstance(qk_norm, (bool, np.bool_)):
        return nnx.RMSNorm if qk_norm else None
    if not callable(qk_norm):
        raise TypeError(
            f"qk_norm must be True or False, or made like nnx.LayerNorm or jattn.nn.L2Norm, got {qk_norm!r}"
        )
    return qk_norm
