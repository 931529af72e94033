"""One step of decoding: the queries of the next positions, and all that they see, at the positions where they are."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jattn import masks
from jattn._call import checks
from jattn._terms import Operand
from jattn.nn import _cache, _checks
from jattn.nn._cache import Cache
from jattn.nn._checks import AnyArray
from jattn.nn._options import Asked, Options, join
from jattn.nn._projections import Projections


class Step(NamedTuple):
    """What a step of decoding attends with.

    Attributes:
      query: `[.., t, h, d]`, of the next t positions.
      cache: with the keys and values of those positions appended.
      options: of `jattn.attention`, for queries that start where the cache ended.
      fits: `[.., t]`, True where a position is inside the cache.
    """

    query: Float[Array, "*b t h d"]
    cache: Cache
    options: Options
    fits: Bool[Array, "*b t"]


def step(
    projections: Projections,
    x: Float[AnyArray, "*b t features"],
    cache: Cache,
    own: Options,
    asked: Asked,
    positions: ArrayLike | None,
    values: AnyArray | None = None,
) -> Step:
    """The step of `MultiHeadAttention.decode`.

    Args:
      projections: of the layer.
      x: `[.., t, features]`.
      cache: what came before.
      own: the layer's options, their arrays made for all the n positions of the cache.
      asked: those of the call, their arrays made for the t rows of x.
      positions: for the rotary embedding, in the place of those in the cache.
      values: `[.., t, value_features]`, what values are made of in the place of x.

    Raises:
      TypeError, ValueError: x, the cache, the positions or a mask do not fit, or the cache is full.
    """
    projections.check_x(x, positions)
    projections.check_values(values, x, "x", "t")
    projections.check_cache(cache, x)
    lead, t, n = x.shape[:-2], x.shape[-2], cache.room
    _cache.check_room(cache, t)
    _checks.check_padding(asked.mask, t, n, lead)
    places, start = cache.positions(t), cache.length.reshape(-1)
    angles = places if positions is None else positions
    query = projections.queries(x, angles)
    cache = _cache.append(cache, *projections.kept(x, values, angles))
    own = _rows(own, start, t, {"b": len(start), "h": query.shape[-2], "t": n, "s": n})
    options = join(asked.beside(own, lead), masks.prefix(start + t))
    return Step(query, cache, {**options, "positions": start}, places < n)


def _rows(options: Options, start: jax.Array, t: int, sizes: dict[str, int]) -> Options:
    """Options made for `sizes`, with t rows from start `[b]` on of every operand that has an axis t.

    Raises:
      ValueError: an operand of a mask, mod or gate has not the sizes.
    """
    if options.get("mask") is not None:
        options = {**options, "mask": checks.place(options["mask"], sizes)}

    def rows(x: object) -> object:
        if not isinstance(x, Operand) or "t" not in x.axes:
            return x
        wrong = {axis: n for axis, n in zip(x.axes, x.array.shape, strict=False) if n != sizes[axis]}
        if wrong:
            raise ValueError(
                f'to decode into a cache, an operand with axes "{x.axes}" must have'
                f" {', '.join(f'{axis} = {sizes[axis]}' for axis in wrong)}, got shape {list(x.array.shape)}"
            )
        per_element = "b" in x.axes
        axes = x.axes if per_element else "b" + x.axes
        take = lambda array, first: jax.lax.dynamic_slice_in_dim(array, first, t, axes.index("t") - 1)
        return Operand(jax.vmap(take, (0 if per_element else None, 0))(x.array, start), axes)

    return jax.tree.map(rows, options, is_leaf=lambda x: isinstance(x, Operand))


def dropped(out: Float[Array, "*b t features"], fits: Bool[Array, "*b t"]) -> Float[Array, "*b t features"]:
    """NaN in the rows of positions that had no room, where nobody could raise because the length is traced."""
    return jnp.where(fits[..., None], out, jnp.nan)
