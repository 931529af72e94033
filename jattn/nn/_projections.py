"""What comes before the attention of a layer: from x to queries, from a context to keys and values."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jattn.nn import _cache, _checks
from jattn.nn._cache import Cache
from jattn.nn._checks import AnyArray
from jattn.nn._rotary import Turn


class Projections(NamedTuple):
    """The parts of a `MultiHeadAttention` that make queries, keys and values.

    Attributes:
      query: x `[.., t, features]` to `[.., t, h, d]`.
      key: context `[.., s, context_features]` to `[.., s, g, d]`.
      value: context `[.., s, context_features]` to `[.., s, g, d]`.
      query_norm: of `[.., t, h, d]`, or None.
      key_norm: of `[.., s, g, d]`, or None.
      rotary: turns queries and keys by their positions, or None for none.
    """

    query: nnx.LinearGeneral
    key: nnx.LinearGeneral
    value: nnx.LinearGeneral
    query_norm: nnx.RMSNorm | None
    key_norm: nnx.RMSNorm | None
    rotary: Turn | None

    def queries(self, x: Float[AnyArray, "*b t f"], positions: ArrayLike | None) -> Float[Array, "*b t h d"]:
        """Queries, normalised and rotated."""
        return self._placed(self.query(jnp.asarray(x)), self.query_norm, positions)

    def keys_values(
        self, context: Float[AnyArray, "*b s f"], positions: ArrayLike | None
    ) -> tuple[Float[Array, "*b s g d"], Float[Array, "*b s g d"]]:
        """Keys, normalised and rotated, and values."""
        context = jnp.asarray(context)
        return self._placed(self.key(context), self.key_norm, positions), self.value(context)

    def _placed(
        self, heads: Float[Array, "*b n h d"], norm: nnx.RMSNorm | None, positions: ArrayLike | None
    ) -> Float[Array, "*b n h d"]:
        if norm is not None:
            heads = norm(heads)
        return heads if self.rotary is None else self.rotary(heads, positions)

    def check_x(self, x: AnyArray, positions: ArrayLike | None) -> None:
        """Raises unless x fits the layer, and positions are given to a rotary embedding alone."""
        _checks.check_array(x, "x", "t", self.query.in_features[0])
        self._check_positions(positions)

    def check_context(self, context: AnyArray, positions: ArrayLike | None) -> None:
        """Raises unless a context fits the layer, and positions are given to a rotary embedding alone."""
        _checks.check_array(context, "context", "s", self.key.in_features[0])
        self._check_positions(positions)

    def check_cache(self, cache: Cache, x: AnyArray) -> None:
        """Raises unless the cache is one of this layer and of the batch of x."""
        heads, width = self.key.out_features
        _cache.check(cache, x.shape[:-2], heads, width)

    def check(
        self,
        x: AnyArray,
        context: AnyArray | Cache | None,
        positions: ArrayLike | None = None,
        context_positions: ArrayLike | None = None,
    ) -> None:
        """Raises unless what a call is given fits the layer and goes together."""
        self.check_x(x, None)
        if isinstance(context, Cache):
            self.check_cache(context, x)
        elif context is not None:
            self.check_context(context, None)
            if x.shape[:-2] != context.shape[:-2]:
                got = f"got x {list(x.shape)}, context {list(context.shape)}"
                raise ValueError(f"x and context must have the same batch axes, {got}")
        self._check_positions(positions, context_positions)
        if context_positions is not None and (context is None or isinstance(context, Cache)):
            where = "without a context" if context is None else "with a cache"
            raise ValueError(f"context_positions was given {where}")

    def _check_positions(self, *positions: ArrayLike | None) -> None:
        if self.rotary is None and any(x is not None for x in positions):
            raise ValueError("positions are those of the rotary embedding: make the layer with rotary_base=10_000.0")
