"""Decoding: the cache that it starts from, and one step of it, the queries of the next positions and all that they
see, at the positions where they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float

from jattn import masks
from jattn._call import checks
from jattn._call.scales import NARROW
from jattn._terms import Operand, Size, reach
from jattn.nn import _checks
from jattn.nn._checks import AnyArray
from jattn.nn._options import Asked, Options, join
from jattn.nn._projections import Projections
from jattn.nn._tree import DraftTree, tree
from jattn.nn.cache import _kinds, _paged, _rows
from jattn.nn.cache._record import Cache


class DecodingStep(NamedTuple):
    """What a step of decoding attends with.

    Attributes:
      query: `[.., t, h, d]`, of the next t positions.
      seen: the cache with the keys and values of those positions appended, which the queries attend to.
      cache: what is kept of it.
      options: of `jattn.attention`, for queries that start where the cache ended.
      fits: `[.., t]`, True where a position is inside the cache, the cache has what it may see, and how many of the
        rows are real is a number that there can be.
    """

    query: Float[Array, "*b t h d"]
    seen: Cache
    cache: Cache
    options: Options
    fits: Bool[Array, "*b t"]


def empty(
    left: int | None,
    n: int | np.integer,
    lead: tuple[Size, ...],
    widths: tuple[int, int, int],
    dtype: DTypeLike,
    slack: int | None,
    page: int | None,
    pages: int | None,
) -> Cache:
    """The cache of `MultiHeadAttention.cache`, where queries see no more than `left` positions before their own, None
    for all."""
    if not _checks.is_whole(n) or n < 1:
        raise ValueError(f"n must be an int >= 1, got {n!r}")
    kept = jnp.dtype(dtype)
    if kept not in NARROW and not (jnp.issubdtype(kept, jnp.floating) and kept.itemsize > 1):
        narrow = ", ".join(x.name for x in NARROW)
        raise ValueError(f"dtype must be a float of 16 bits or more, or one of {narrow}, got {kept.name}")
    room = int(n)
    if slack is not None:
        _checks.check_sizes(slack=slack)
        room = room if left is None else min(room, left + int(slack))
    slides = room < int(n)
    if pages is not None and page is None:
        raise ValueError(f"pages = {pages!r} was given without page, how many positions one has")
    paged: dict[str, int | None] = {}
    if page is not None:
        _checks.check_sizes(page=page, pages=1 if pages is None else pages)
        paged = {} if slides else {"page": int(page), "pages": None if pages is None else int(pages)}
    return _kinds.empty(lead, room, *widths, dtype, slides, **paged)


def step(
    projections: Projections,
    x: Float[AnyArray, "*b t features"],
    cache: Cache,
    own: Options,
    asked: Asked,
    positions: ArrayLike | None,
    values: AnyArray | None = None,
    lengths: ArrayLike | None = None,
    parents: ArrayLike | Sequence[int] | None = None,
) -> DecodingStep:
    """The step of `MultiHeadAttention.decode`.

    Args:
      projections: of the layer.
      x: `[.., t, features]`.
      cache: what came before.
      own: the layer's options, their arrays made for all the n positions of the cache.
      asked: those of the call, their arrays made for the t rows of x.
      positions: for the rotary embedding, in the place of those in the cache.
      values: `[.., t, value_features]`, what values are made of in the place of x.
      lengths: `[..]`, how many of the t rows of each example are real; None for all.
      parents: `[t]` or `[.., t]`, where the t rows are a tree of drafts.

    Raises:
      TypeError, ValueError: x, the cache, the positions, lengths or a mask do not fit, or the cache is full.
    """
    projections.check_x(x, positions)
    projections.check_values(values, x, "x", "t")
    projections.check_cache(cache, x)
    lead, t, n = x.shape[:-2], x.shape[-2], cache.room
    told = taken = None if lengths is None else _checks.as_lengths(lengths, lead, t).astype(jnp.int32)
    if taken is not None:
        x, values = _checks.real_rows(x, taken), None if values is None else _checks.real_rows(values, taken)
        taken = jnp.clip(taken, 0, t)
    given, cache = cache, _paged.gathered(cache)
    along = lambda x: None if x is None else _along(x, cache)
    x, values, told, taken = _along(x, cache), along(values), along(told), along(taken)
    cache = cache._replace(length=_along(cache.length, cache), first=along(cache.first))
    _kinds.check_room(cache, t, taken)
    _checks.check_padding(asked.mask, t, n, lead)
    places, start = cache.positions(t), cache.length.reshape(-1)
    after = start + (t if taken is None else taken.reshape(-1))
    drafts = DraftTree(*(_along(y, cache) for y in tree(parents, lead, t))) if parents is not None and t else None
    deep = places if drafts is None else cache.length[..., None] + drafts.depth
    angles = deep if positions is None else positions
    if positions is None and taken is not None:
        # Rows past an example's end would make the text longer to an embedding that scales by its length.
        angles = jnp.minimum(deep, (cache.length + taken - 1)[..., None])
    query = projections.queries(x, angles)
    left = _window(own, cache)
    room = cache.room
    if left is not None:
        fits = jnp.broadcast_to(has_seen(cache, left)[..., None], places.shape)
        cache = _rows.with_room(cache, t, left)
    seen = cache = _kinds.append(cache, *projections.kept(x, values, angles), taken)
    if left is not None and seen.room > room:
        cache = _rows.slid(seen, left, room)
    at = {"t": deep.reshape(start.shape[0], t).astype(jnp.int32)}
    if drafts is not None:
        rows = jnp.arange(seen.room, dtype=jnp.int32) + (0 if seen.first is None else seen.first.reshape(-1, 1))
        at["s"] = drafts.keys(start, jnp.broadcast_to(rows, (start.shape[0], seen.room)))
    if left is None:
        fits = places < _kinds.limit(seen)[..., None]
        own = _rows_of(own, at, {"b": start.shape[0], "h": query.shape[-2], "t": n, "s": n})
    if taken is not None:
        fits = (fits | (jnp.arange(t) >= taken[..., None])) & (told == taken)[..., None]
    options = asked.beside(own, lead)
    if drafts is not None:
        options = drafts.options(options, start, at["t"], at["s"])
    options = join(options, masks.prefix(after))
    firsts = start if seen.first is None else {"t": start, "s": seen.first.reshape(-1)}
    options = {**options, **stored(projections, seen), "positions": firsts}
    return DecodingStep(query, seen, _paged.back(cache, given), options, fits)


def stored(projections: Projections, cache: Cache) -> Options:
    """Options of `jattn.attention` that say how the keys and values lie that queries attend to in a cache."""
    scales = projections.cache_scales(cache)
    options: Options = {} if scales is None else {"scales": scales}
    if cache.pages is not None:
        options["pages"] = _paged.merged(cache) if cache.length.ndim else cache.pages
    return options


def window(own: Options) -> int | None:
    """How many keys before its own a query can see, where windows of the layer's mask say it."""
    left = reach.span(own.get("mask")).left
    return max(0, int(left)) if math.isfinite(left) else None


def _window(own: Options, cache: Cache) -> int | None:
    """The window of a cache that slides, None for one that keeps all.

    Raises:
      ValueError: the layer has none, or its options have arrays of positions, which have no n to be of.
    """
    if cache.first is None:
        return None
    left = window(own)
    if left is None or left >= cache.room:
        raise ValueError(f"a cache with slack needs a layer whose mask has a window within its room of {cache.room}")
    own = {**own, "mask": None} if isinstance(own.get("mask"), masks.Unplaced) else own
    operands = jax.tree.leaves(own, is_leaf=lambda x: isinstance(x, Operand))
    if any(isinstance(x, Operand) and set(x.axes) & {"t", "s"} for x in operands):
        raise ValueError("a cache with slack has no n: masks, mods and gates of the layer must have no axes t and s")
    return left


def has_seen(cache: Cache, left: int) -> Bool[Array, "*b"]:
    """Whether a cache that slides still has what its next query sees: not where it was shortened by too much.

    Raises:
      ValueError: it is known that it has not.
    """
    assert cache.first is not None
    has = cache.first <= jnp.maximum(cache.length - left, 0)
    if not isinstance(has, Tracer) and not has.all():
        raise ValueError("the cache was shortened to before what it keeps: give it more slack")
    return has


def _rows_of(options: Options, at: dict[str, jax.Array], sizes: dict[str, int]) -> Options:
    """Options made for `sizes`, with what operands have at these places `[b, ..]` of the axes t and s.

    Raises:
      ValueError: an operand of a mask, mod or gate has not the sizes.
    """
    if options.get("mask") is not None:
        options = {**options, "mask": checks.place(options["mask"], sizes)}

    def rows(x: object) -> object:
        if not isinstance(x, Operand) or not {*at} & {*x.axes}:
            return x
        wrong = {axis: n for axis, n in zip(x.axes, x.array.shape, strict=False) if n != sizes[axis]}
        if wrong:
            raise ValueError(
                f'to decode into a cache, an operand with axes "{x.axes}" must have'
                f" {', '.join(f'{axis} = {sizes[axis]}' for axis in wrong)}, got shape {list(x.array.shape)}"
            )
        per_element = "b" in x.axes
        axes = x.axes if per_element else "b" + x.axes

        def take(array: jax.Array, at: dict[str, jax.Array]) -> jax.Array:
            for axis, places in at.items():
                if axis in axes:
                    array = jnp.take(array, places, axes.index(axis) - 1, mode="clip")
            return array

        return Operand(jax.vmap(take, (0 if per_element else None, 0))(x.array, at), axes)

    return jax.tree.map(rows, options, is_leaf=lambda x: isinstance(x, Operand))


def _along(x: AnyArray, cache: Cache) -> jax.Array:
    """x with its batch axes where those of the cache lie: along Explicit axes one array per example goes with another
    only where both lie alike.  Pages have no examples, so that what goes with them is on every device."""
    lead, x = cache.length.ndim, jnp.asarray(x)
    placed, own = (jax.typeof(y).sharding for y in (cache.key if cache.pages is None else cache.length, x))
    axes, mesh = placed.spec[:lead], placed.mesh
    if AxisType.Explicit not in mesh.axis_types:  # made where no mesh was set: every device has all of it
        axes, mesh = (None,) * lead, own.mesh
    if AxisType.Explicit not in mesh.axis_types:
        return x
    return jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec(*axes, *own.spec[lead:])))


def dropped(out: Float[Array, "*b t features"], fits: Bool[Array, "*b t"]) -> Float[Array, "*b t features"]:
    """NaN in the rows of positions that do not fit, where nobody could raise because the length is traced."""
    return jnp.where(fits[..., None], out, jnp.nan)
