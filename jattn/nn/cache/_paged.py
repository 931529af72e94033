"""Caches in pages: examples have tables of pages, and share those of what they have in common (Kwon et al. 2023).

An example holds the pages in its table, and `holders` counts for each page how many do.  Who writes into a page that
others hold gets a copy first, so that to share is to hold the same page, and nothing else.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int

from jattn.nn.cache._record import Cache, Rows, rows_of, with_rows

_TABLES = "length", "pages", "holders"


class PageTable(NamedTuple):
    """Who holds which pages of one pool.

    Attributes:
      pages: `[b, m]`, p where there is none.
      holders: `[p]`.
    """

    pages: Int[Array, "b m"]
    holders: Int[Array, "p"]

    def released(self, which: Bool[Array, "b m"]) -> PageTable:
        """The table without the entries that `which` marks: for each, its page has a holder less."""
        gone = jnp.where(which, self.pages, self.none)
        return PageTable(jnp.where(which, self.none, self.pages), self.holders.at[gone].add(-1, mode="drop"))

    @property
    def none(self) -> int:
        """What stands for no page."""
        return self.holders.shape[-1]


def everywhere(x: Array) -> Array:
    """x on every device, where it lies along Explicit axes."""
    placed = jax.typeof(x).sharding
    return jax.sharding.reshard(x, NamedSharding(placed.mesh, PartitionSpec())) if any(placed.spec) else x


def gathered(cache: Cache) -> Cache:
    """The cache with its tables on every device: a page is of no example, so that no axis of examples can divide pages.

    Raises:
      ValueError: pages lie along an Explicit axis.
    """
    if cache.pages is None:
        return cache
    heads = cache.key.ndim - 2
    for name, pool in rows_of(cache)._asdict().items():
        if pool is not None and any((placed := jax.typeof(pool).sharding.spec)[heads - 2 : heads]):
            raise ValueError(
                f"{name} of a cache in pages lies along {placed}, but pages are of no example: along Explicit axes lay"
                " out length and pages alone, by cache._replace(length=.., pages=..), or heads; or make the axes Auto"
            )
    tables = {name: everywhere(getattr(cache, name)) for name in _TABLES}
    return cache._replace(**tables)


def back(cache: Cache, given: Cache) -> Cache:
    """A cache that was gathered with its tables where those of the given one lie, so that a loop can carry it."""
    if cache.pages is None:
        return cache

    def one(x: Array, like: Array) -> Array:
        placed = jax.typeof(like).sharding
        return jax.sharding.reshard(x, placed) if any(placed.spec) else x

    return cache._replace(**{name: one(getattr(cache, name), getattr(given, name)) for name in _TABLES})


def wanted(table: PageTable, length: Int[Array, "b"], taken: Int[Array, "b"], t: int, page: int) -> tuple[Array, ...]:
    """Of the places in the table that up to t next positions, `taken` of them, touch, `[b, k]`: which they are, their
    pages, which of them begin with positions of before, and which need a page.

    A place that should have a page and has none was full when it was asked for, and stays so.  Where all who hold a
    page write into it, the first of them keeps it once the others have copies.
    """
    m = table.pages.shape[1]
    place = length[:, None] // page + jnp.arange((t + page - 2) // page + 1, dtype=length.dtype)
    touched = (place * page < (length + taken)[:, None]) & (place < m) & (taken > 0)[:, None]
    pages = jnp.take_along_axis(table.pages, jnp.minimum(place, m - 1), axis=1)
    pages = jnp.where(touched, pages, table.none)
    begun = place * page < length[:, None]
    holders = table.holders.at[pages].get(mode="fill", fill_value=0)
    order = jnp.arange(pages.size, dtype=jnp.int32).reshape(pages.shape)
    first = jnp.full_like(table.holders, pages.size).at[pages].min(order, mode="drop").at[pages].get(mode="clip")
    writers = jnp.zeros_like(table.holders).at[pages].add(1, mode="drop").at[pages].get(mode="clip")
    copies = (holders > 1) & ((writers < holders) | (order > first))
    return place, pages, begun, touched & (copies | (~begun & (pages == table.none)))


def allocated(
    table: PageTable, place: Array, pages: Array, begun: Array, need: Array
) -> tuple[PageTable, Array, Array]:
    """The table with a page for every place that needs one, as long as there are free ones; and `[b]`, of which page
    an example needs a copy before it writes, none if of none, and the page for it."""
    free = jnp.nonzero(table.holders == 0, size=need.size, fill_value=table.none)[0].astype(jnp.int32)
    rank = jnp.cumsum(need.ravel()).reshape(need.shape) - 1
    new = jnp.where(need, free[rank], table.none)
    gone = jnp.where(need, pages, table.none)
    holders = table.holders.at[gone].add(-1, mode="drop").at[new].add(1, mode="drop")
    examples = jnp.arange(need.shape[0])[:, None]
    entries = table.pages.at[examples, jnp.where(need, place, table.pages.shape[1])].set(new, mode="drop")
    source = jnp.where(begun[:, 0] & need[:, 0], pages[:, 0], table.none)
    return PageTable(entries, holders), source, new[:, 0]


def append(cache: Cache, new: Rows, taken: Int[Array, "*b"] | None) -> Cache:
    """The cache with the rows of the next t positions, of which `taken` are real.

    Positions without a page, because none was free or the table is full, are dropped.
    """
    t, flat = new.key.shape[-3], _flat(cache)
    if not t:
        return cache
    counts, table = _counts(flat, t, taken), _table(flat)
    needs = _wanted(flat, t, counts)
    nowhere = jnp.full_like(flat.length, table.none)
    allocate, leave = lambda: jax.vmap(allocated)(table, *needs), lambda: (table, nowhere, nowhere)
    table, source, copy = jax.lax.cond(jnp.any(needs[-1]), allocate, leave)
    steps = jnp.arange(t, dtype=counts.dtype)
    at = jnp.where(steps < counts[..., None], flat.length[..., None] + steps, flat.room)
    flat = _copied(_held(flat, table), source, copy)
    flat = written(flat, new, at)
    return _like(flat._replace(length=flat.length + counts), cache)


def lacks(cache: Cache, t: int, taken: Int[Array, "*b"] | None) -> tuple[int, int]:
    """How many pages the next t positions need, and how many are free, in the pool that lacks most."""
    flat = _flat(cache)
    needed = _wanted(flat, t, _counts(flat, t, taken))[-1].sum((1, 2))
    free = (_table(flat).holders == 0).sum(1)
    worst = jnp.argmax(needed - free)
    return int(needed[worst]), int(free[worst])


def limit(cache: Cache) -> Int[Array, "*b"]:
    """Up to which position each example has pages."""
    table = _table(cache)
    there = table.pages < table.none
    return cache.key.shape[-3] * jnp.cumprod(there.astype(jnp.int32), axis=-1).sum(-1)


def merged(cache: Cache) -> Int[Array, "n m"]:
    """The tables of all examples, counting pages through all pools."""
    flat = _flat(cache)
    table = _table(flat)
    return _in_all(table.pages, table.none).reshape(-1, table.pages.shape[-1])


def held_by(cache: Cache, source: Int[Array, "k"], target: Int[Array, "k"]) -> Cache:
    """The cache whose examples `target` hold what the examples `source` do, the nearest for one that is out of range,
    and no more what they held."""
    flat = _flat(cache)
    (_, b), (_, p) = flat.length.shape, _table(flat).holders.shape
    source, target = jnp.clip(source, 0, b - 1), jnp.where((target < 0) | (target >= b), b, target)

    def one(table: PageTable, length: Array) -> tuple[PageTable, Array]:
        lengths, entries = length[source], table.pages[source]
        entries = jnp.where(_begins(table, flat) < lengths[:, None], entries, p)
        entries = jnp.where(target[:, None] < b, entries, p)
        holders = table.holders.at[entries].add(1, mode="drop")  # before any is let go
        table = table._replace(holders=holders).released(_among(target, b)[:, None])
        pages = table.pages.at[target].set(entries, mode="drop")
        return table._replace(pages=pages), length.at[target].set(lengths, mode="drop")

    table, length = jax.vmap(one)(_table(flat), flat.length)
    return _like(_held(flat, table)._replace(length=length), cache)


def released(cache: Cache, length: Int[Array, "*b"]) -> Cache:
    """The cache with these lengths, and without the pages that come after."""
    flat = _flat(cache)
    length = length.reshape(flat.length.shape)
    one = lambda table, length: table.released(_begins(table, flat) >= length[:, None])
    return _like(_held(flat, jax.vmap(one)(_table(flat), length))._replace(length=length), cache)


def at_positions(cache: Cache, at: Int[Array, "*b k"]) -> Rows:
    """The rows at these positions, NaN or with scales of NaN where there is no page."""
    flat = _flat(cache)
    pages, row = _entries(flat, at.reshape(*flat.length.shape, at.shape[-1]))
    pool = lambda x: _all(x).at[pages, row].get(mode="fill")
    return jax.tree.map(lambda x: pool(x).reshape(*at.shape, *x.shape[3:]), rows_of(flat))


def written(flat: Cache, new: Rows, at: Int[Array, "a b t"]) -> Cache:
    """The flat cache with rows `[.., t, ..]` at these positions; where there is no page they are dropped."""
    pages, row = _entries(flat, at)

    def one(pool: Array, new: Array) -> Array:
        whole = _all(pool)
        new = new.reshape(*at.shape, *pool.shape[3:]).astype(pool.dtype)
        return whole.at[pages, row].set(new, mode="drop").reshape(pool.shape)

    return with_rows(flat, jax.tree.map(one, rows_of(flat), new))


# A flat cache has one axis for all that pools and tables have in front: pools `[a, p, page, ..]`, lengths `[a, b]`.


def _flat(cache: Cache) -> Cache:
    extra, one = cache.key.ndim - 4, cache.length.ndim == cache.key.ndim - 4
    joined = lambda x: x.reshape(math.prod(x.shape[:extra]), *x.shape[extra:])
    flat = jax.tree.map(joined, cache)
    assert flat.pages is not None
    return flat._replace(length=flat.length[:, None], pages=flat.pages[:, None]) if one else flat


def _all(pool: Array) -> Array:
    """The pages of all pools, one after the other."""
    return pool.reshape(pool.shape[0] * pool.shape[1], *pool.shape[2:])


def _like(flat: Cache, cache: Cache) -> Cache:
    return jax.tree.map(lambda x, like: x.reshape(like.shape), flat, cache)


def _table(cache: Cache) -> PageTable:
    assert cache.pages is not None
    assert cache.holders is not None
    return PageTable(cache.pages, cache.holders)


def _held(flat: Cache, table: PageTable) -> Cache:
    return flat._replace(pages=table.pages, holders=table.holders)


def _wanted(flat: Cache, t: int, counts: Int[Array, "a b"]) -> tuple[Array, ...]:
    one = lambda table, length, count: wanted(table, length, count, t, flat.key.shape[-3])
    return jax.vmap(one)(_table(flat), flat.length, counts)


def _counts(flat: Cache, t: int, taken: Int[Array, "*b"] | None) -> Int[Array, "a b"]:
    return jnp.full_like(flat.length, t) if taken is None else taken.reshape(flat.length.shape)


def _begins(table: PageTable, flat: Cache) -> Int[Array, "m"]:
    """The first position of each place in a table."""
    return jnp.arange(table.pages.shape[-1], dtype=jnp.int32) * flat.key.shape[-3]


def _among(examples: Int[Array, "k"], b: int) -> Bool[Array, "b"]:
    return jnp.zeros(b, bool).at[examples].set(True, mode="drop")


def _in_all(pages: Int[Array, "a ..."], none: int) -> Int[Array, "a ..."]:
    """Pages of each pool, counted through all pools; what is none is beyond them all."""
    pools = pages.shape[0]
    first = jnp.arange(pools, dtype=pages.dtype).reshape(-1, *[1] * (pages.ndim - 1)) * none
    return jnp.where(pages < none, pages + first, pools * none)


def _entries(flat: Cache, at: Int[Array, "a b t"]) -> tuple[Int[Array, "a b t"], Int[Array, "a b t"]]:
    """Pages, counted through all pools, and rows of positions."""
    table, page = _table(flat), flat.key.shape[-3]
    m = table.pages.shape[-1]
    pages = jnp.take_along_axis(table.pages, jnp.clip(at // page, 0, m - 1), axis=-1)
    return _in_all(jnp.where(at < m * page, pages, table.none), table.none), at % page


def _copied(flat: Cache, source: Int[Array, "a b"], copy: Int[Array, "a b"]) -> Cache:
    """The flat cache with pages copied, where there are some to copy."""
    none = _table(flat).none
    needed = source < none
    source, copy = _in_all(source, none), _in_all(jnp.where(needed, copy, none), none)

    def one(pool: Array) -> Array:
        whole = _all(pool)
        return whole.at[copy].set(whole.at[source].get(mode="clip"), mode="drop").reshape(pool.shape)

    copies = lambda rows: jax.tree.map(one, rows)
    return with_rows(flat, jax.lax.cond(jnp.any(needed), copies, lambda rows: rows, rows_of(flat)))
