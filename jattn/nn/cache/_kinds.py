"""What layers ask of a cache, whatever its kind."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jattn._terms import Size
from jattn.nn.cache import _paged, _rows
from jattn.nn.cache._quantised import is_narrow, quantised
from jattn.nn.cache._record import Cache, Rows


def empty(
    lead: tuple[Size, ...],
    n: int,
    heads: int,
    d: int,
    e: int,
    dtype: DTypeLike,
    slides: bool = False,
    page: int | None = None,
    pages: int | None = None,
) -> Cache:
    """A cache of length 0.  Its arrays are buffers apart, so that it can be donated.

    `page` and `pages`: of a cache in pages, the rows of one and how many there are, by default enough for n positions
    of all examples.
    """
    rows, table, holders = (*lead, n), None, None
    if page is not None:
        m, pools = -(-n // page), lead[:-1]
        p = (max(1, lead[-1]) if lead else 1) * m if pages is None else pages
        rows, table, holders = (*pools, p, page), jnp.full((*lead, m), p, jnp.int32), jnp.zeros((*pools, p), jnp.int32)
    key, value = (jnp.zeros((*rows, heads, width), dtype) for width in (d, e))
    scales = [jnp.ones((*rows, heads), jnp.float32) if is_narrow(dtype) else None for _ in range(2)]
    length, first = (jnp.zeros(lead, jnp.int32) for _ in range(2))
    return Cache(key, value, length, first if slides else None, table, holders, *scales)


def append(
    cache: Cache,
    key: Float[Array, "*b t g d"],
    value: Float[Array, "*b t g e"],
    taken: Int[Array, "*b"] | None = None,
) -> Cache:
    """The cache with the keys and values of the next t positions, `taken` of which are real; those past its end are
    dropped."""
    new = Rows(key, value)
    if cache.key_scale is not None:
        (key, key_scale), (value, value_scale) = (quantised(x, cache.key.dtype) for x in (key, value))
        new = Rows(key, value, key_scale, value_scale)
    return (_rows if cache.pages is None else _paged).append(cache, new, taken)


def limit(cache: Cache) -> Int[Array, "..."]:
    """Up to which position each example has room."""
    return jnp.int32(cache.room) if cache.pages is None else _paged.limit(cache)


def slides(caches: object) -> bool:
    """Whether a cache in a pytree slides."""
    return any(x.first is not None for x in jax.tree.leaves(caches, is_leaf=is_cache) if is_cache(x))


def lengths(caches: object) -> list[Int[Array, "..."]]:
    """How many positions each of the caches in a pytree holds."""
    return [x.length for x in jax.tree.leaves(caches, is_leaf=is_cache) if is_cache(x)]


def shortened(caches: object, before: list[Int[Array, "..."]], taken: Int[Array, "b"]) -> object:
    """The caches in a pytree, where only the first `taken` positions that came after `before` are real.

    A cache that holds as many as before is one that is read alone, and stays.
    """
    starts = iter(before)

    def shorten(x: object) -> object:
        if not isinstance(x, Cache):
            return x
        start = next(starts)
        return x._replace(length=jnp.where(x.length > start, start + taken, x.length))

    return jax.tree.map(shorten, caches, is_leaf=is_cache)


def is_cache(x: object) -> bool:
    """Whether x is a cache of a layer: a leaf, where caches are looked for in a pytree."""
    return isinstance(x, Cache)


def check(cache: object, lead: tuple[Size, ...], heads: int, d: int, e: int) -> None:
    """Raises unless the cache is one of this layer and batch."""
    if not isinstance(cache, Cache):
        raise TypeError(f"cache must be made by the layer's cache() or read(), got {type(cache).__name__}")
    paged = cache.pages is not None
    front = (*lead[:-1], None, None) if paged else (*lead, None)
    expected = (*front, heads, d), (*front, heads, e)
    fits = lambda shape, wanted: (
        len(shape) == len(wanted) and all(w in (None, n) for n, w in zip(shape, wanted, strict=True))
    )
    slides = cache.first is None or cache.first.shape == lead
    tables = cache.pages is None or cache.pages.shape[:-1] == lead
    right = fits(cache.key.shape, expected[0]) and fits(cache.value.shape, expected[1])
    if not (right and slides and tables and cache.length.shape == lead):
        rows = ".., p, page" if paged else ".., n"
        keys = "" if d == e else f" [{rows}, {heads}, {d}]"
        wanted = f"key{keys} and value [{rows}, {heads}, {e}]"
        raise ValueError(
            f"cache must have {wanted} and length [..] with the batch axes {list(lead)}"
            f" of x, got key {list(cache.key.shape)}, value {list(cache.value.shape)}, length"
            f" {list(cache.length.shape)}"
        )


def check_room(cache: Cache, t: int, taken: Int[Array, "*b"] | None = None) -> None:
    """Raises where more positions are known not to fit, in a cache that keeps all of them."""
    if any(isinstance(x, Tracer) for x in (cache.length, cache.pages, cache.holders, taken)) or cache.first is not None:
        return
    with jax.ensure_compile_time_eval():  # a caller may be traced, while all that is looked at here is known
        _check_known_room(cache, t, taken)


def _check_known_room(cache: Cache, t: int, taken: Int[Array, "*b"] | None) -> None:
    after = cache.length + (t if taken is None else taken)
    if after.size and int(jnp.max(after)) > cache.room:
        longest = int(jnp.max(cache.length))
        raise ValueError(
            f"the cache has room for n = {cache.room} positions and holds {longest}: {t} more do not fit;"
            " make a longer one with layer.cache(n, batch)"
        )
    if cache.pages is not None and after.size:
        needed, free = _paged.lacks(cache, t, taken)
        if needed > free:
            raise ValueError(
                f"the cache has {free} free pages of {cache.key.shape[-4]}, and {t} more positions need {needed}: free"
                " examples with jattn.nn.cache.free, or make it with more, layer.cache(n, batch, page=.., pages=..)"
            )
