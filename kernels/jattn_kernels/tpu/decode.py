"""Forward for few queries, as in decoding: all heads of a batch element at once, keys in the layout in which they lie.

With few queries a tile of one head has next to no rows, and time goes into reading the keys.  So the heads fold: rows
are the queries of all heads, `[t h, d]`, columns the keys of all key heads, `[s g, d]`, both of them plain reshapes of
`[t, h, d]` and `[s, g, d]`, so that no array moves.  Of the products, those of a query with another head's keys are
thrown away: the units have time for them while the next keys come.

Grid: half of the keys (of chips with two cores), item of work.  An item is a chunk of one batch element's keys; chunks
that nothing is seen of are not among them, and how many there are is known at run time alone.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from jattn_kernels.tiles.functions import LOG2E, TileFunctions
from jattn_kernels.tiles.place import Index
from jattn_kernels.tiles.work import FULL, PARTIAL, Array, kind_of, numpy_of
from jattn_kernels.tpu.forward import LOWEST, fold_lanes, lanes, reciprocal
from jattn_kernels.tpu.grid_step import product
from jattn_kernels.tpu.lanes import to_column
from jattn_kernels.tpu.layout import array
from jattn_kernels.tpu.sizes import LANES

ROWS = 16  # a tile of 16-bit numbers has so many: queries are filled up to whole tiles
MOST_LINES, MOST_CHUNKS = 2**15, 2**14  # an item has bits for no more
_KIND, _CHUNK = 2, 14  # bits of an item for its chunk's kind and number; above them stands the batch element
_NONE = 2**31 - 1  # sorts behind all items
_STEP = 1024  # columns of one product, about
_UNROLLED = 8  # pages whose copies begin in one go


class Fold(NamedTuple):
    """Lengths of a call whose heads are folded, how many keys are in fast memory at once, and how many columns one
    product has."""

    t: int
    s: int
    h: int
    g: int
    chunk: int
    step: int
    page: int = 0  # keys of a page, where keys lie in pages

    @property
    def rows(self) -> int:
        """How many rows the queries of all heads have, in whole tiles."""
        return -(-self.t * self.h // ROWS) * ROWS

    @property
    def columns(self) -> int:
        """How many columns the keys of a chunk have, one for each key head."""
        return self.chunk * self.g

    @property
    def chunks(self) -> int:
        return -(-self.s // self.chunk)

    @property
    def padded(self) -> dict[str, int]:
        """Lengths that chunks divide."""
        return {"t": self.t, "s": self.chunks * self.chunk}


def fold_of(t: int, s: int, h: int, g: int, most: int, spread: bool, page: int = 0) -> Fold:
    """How heads fold where a chunk is to have at most `most` keys: it has all of them, or a number times a power of two
    with which columns are whole lanes.  `spread`: operands have numbers of keys, which are spread over columns, of
    whole lanes of keys at a time."""
    unit = math.lcm(LANES if spread else LANES // math.gcd(LANES, g), max(page, 1))
    chunk = unit * min(2 ** max(0, (most // unit).bit_length() - 1), -(-s // unit))
    least = LANES * g if spread else LANES
    step = least * math.gcd(chunk * g // least, max(1, _STEP // least))
    return Fold(t, s, h, g, chunk, step, page)


class Items(NamedTuple):
    """The work of each half of the keys: `[halves, most]` items in order and `[halves]` how many there are."""

    items: Array
    counts: Array
    partial: bool
    """Whether some chunks may be partial."""
    full: bool
    """Whether some chunks may be full."""

    @property
    def longest(self) -> int | jax.Array:
        """How many steps the grid has for a half: the items of the half that has most."""
        xp = numpy_of(self.counts)
        return int(self.counts.max()) if xp is not jnp else jnp.max(self.counts)


def items_of(some: Array, every: Array, halves: int) -> Items:
    """The work of booleans `[b, chunks]`: of which chunks something is seen, and of which all is.

    A batch element of which nothing is seen has an empty item, so that its rows are written.
    """
    xp = numpy_of(some)
    b, chunks = some.shape
    static = xp is not jnp
    chunk = xp.arange(chunks, dtype=xp.int32)
    mine = chunk % halves == xp.arange(halves, dtype=xp.int32)[:, None, None]
    used = some & mine  # [halves, b, chunks]
    kind = kind_of(used, every)
    used = used | (~used.any(-1, keepdims=True) & (chunk == 0))
    line = xp.arange(b, dtype=xp.int32)[:, None] << (_CHUNK + _KIND)
    items = xp.where(used, line + (chunk << _KIND) + kind, _NONE).astype(xp.int32).reshape(halves, -1)
    counts = used.reshape(halves, -1).sum(-1).astype(xp.int32)
    partial, full = (not static or bool((kind == x).any()) for x in (PARTIAL, FULL))
    return Items(xp.sort(items, axis=-1), counts, partial, full)


@dataclasses.dataclass(frozen=True)
class FoldedLayout:
    """How one operand is laid out for folded heads: `""` a number for each batch element, `rows` `[batch, rows, 1]`,
    `keys` `[batch, n, s]`: for all rows 1, or one for each row, or with `heads` one for each key head."""

    along: str
    batch: int
    boolean: bool
    n: int = 1
    heads: bool = False

    def spec(self, fold: Fold, at: Any) -> pl.BlockSpec:
        """`at(*grid)` gives the batch element and chunk of a step."""
        if not self.along:
            return pl.BlockSpec(memory_space=pltpu.SMEM)

        def index(*grid: Index):
            b, c = at(*grid)
            return entry(b, self.batch), 0, 0 if self.along == "rows" else c

        return pl.BlockSpec((None, *((fold.rows, 1) if self.along == "rows" else (self.n, fold.chunk))), index)

    def load(self, ref: jax.Ref, b: Index, fold: Fold) -> jax.Array:
        """What a chunk needs of it, broadcastable to its scores."""
        if not self.along:
            part = ref[entry(b, self.batch)]
        elif self.along == "rows":
            part = ref[...]
        else:
            part = ref[...]
            if part.dtype.itemsize < 4:
                part = part.astype(jnp.float32 if jnp.issubdtype(part.dtype, jnp.floating) else jnp.int32)
            part = spread(part, fold.g, 1 if self.boolean else 4)
            if self.heads:
                own, head = (jax.lax.broadcasted_iota(jnp.int32, part.shape, n) for n in range(2))
                part = jnp.where(own == divided(head, fold.g)[1], part, jnp.zeros_like(part))
                part = jnp.sum(part, axis=0, keepdims=True)
        return part

    def of_tile(self, part: jax.Array, tile: _Tile) -> jax.Array:
        """What a tile needs of what its chunk does."""
        part = part[:, tile.at : tile.at + tile.size] if self.along == "keys" else part
        return part != 0 if self.boolean else part


def spread(x: jax.Array, g: int, width: int) -> jax.Array:
    """`[n, keys]` to `[n, keys g]`, each number g times in a row, of as many whole lanes of keys.

    A vector unit moves nothing from lane to lane, but a matrix unit does, with ones and zeros.  It takes a number's
    `width` bytes one by one, as each is exact in 8 bits of mantissa, and none of them is NaN.
    """
    if g == 1:
        return x
    n, keys = x.shape
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    bits = jnp.concatenate([bits[:, at : at + LANES] for at in range(0, keys, LANES)], 0)
    stacked = jnp.concatenate([((bits >> (8 * y)) & 255).astype(jnp.float32) for y in range(width)], 0)
    rows, columns = (jax.lax.broadcasted_iota(jnp.int32, (LANES, LANES * g), y) for y in range(2))
    ones = jnp.where(rows == divided(columns, g)[0], 1.0, 0.0).astype(jnp.bfloat16)
    moved = product(stacked.astype(jnp.bfloat16), ones, (1, 0), None).astype(jnp.int32)
    moved = [moved[y * len(bits) : (y + 1) * len(bits)] << (8 * y) for y in range(width)]
    whole = functools.reduce(jnp.bitwise_or, moved)
    whole = jnp.concatenate([whole[at : at + n] for at in range(0, len(whole), n)], 1)
    return jax.lax.bitcast_convert_type(whole, x.dtype)


def lay_out(x: jax.Array, axes: str, fold: Fold) -> tuple[jax.Array, FoldedLayout]:
    """An array with the axes `axes` of `b h t s` as the kernel takes it, and its layout; g in the place of h where the
    heads of a group share it.

    Where it has keys, and queries or heads, it is repeated along what it lacks of the two.
    """
    boolean = x.dtype == jnp.bool_
    batch = x.shape[0] if "b" in axes else 1
    pairs = "s" in axes and ("h" in axes or "t" in axes)
    if jnp.issubdtype(x.dtype, jnp.floating):
        x = x if pairs else x.astype(jnp.float32)
    elif x.dtype != jnp.uint32:
        x = x.astype(jnp.int8 if boolean and pairs else jnp.int32)
    if "g" in axes:
        return x.reshape(batch, fold.g, -1), FoldedLayout("keys", batch, boolean, fold.g, heads=True)
    h, t, s = (x.shape[axes.index(a)] if a in axes else 1 for a in "hts")
    x = jnp.swapaxes(x.reshape(batch, h, t, s), 1, 2)
    if set("ht") & set(axes):
        x = jnp.broadcast_to(x, (batch, fold.t, fold.h, s)).reshape(batch, -1, s)
        x = jnp.pad(x, ((0, 0), (0, fold.rows - x.shape[1]), (0, 0)), mode="edge")
        return x, FoldedLayout("keys" if "s" in axes else "rows", batch, boolean, fold.rows)
    if "s" in axes:
        return x.reshape(batch, 1, s), FoldedLayout("keys", batch, boolean)
    return x.reshape(batch), FoldedLayout("", batch, boolean)


def entry(b: Index, batch: int) -> Index:
    """Which of `batch` entries batch element b uses."""
    return 0 if batch == 1 else jax.lax.rem(b, jnp.int32(batch))


def divided(x: jax.Array, n: int) -> tuple[Any, Any]:
    """x // n and x % n of vectors of numbers below 2^20."""
    if n & (n - 1) == 0:
        return x >> (n.bit_length() - 1), x & (n - 1)
    quotient = ((x.astype(jnp.float32) + 0.5) * (1 / n)).astype(jnp.int32)  # the unit has no division
    return quotient, x - quotient * n


class _Tile:
    """Some columns of a chunk with all rows: where they stand."""

    def __init__(self, fold: Fold, b: Index, chunk: Index, at: int, size: int):
        self.fold, self.b, self.at, self.size = fold, b, at, size
        self.row = jax.lax.broadcasted_iota(jnp.int32, (fold.rows, 1), 0)
        column = jax.lax.broadcasted_iota(jnp.int32, (1, size), 1) + at
        self.i, self.head = divided(self.row, fold.h)
        key, self.key_head = divided(column, fold.g)
        self.j = key + chunk * fold.chunk

    def live(self, masked: bool) -> Any:
        """Which pairs there are: of a query and a key of its own head, which exists; True for all."""
        live = True
        if self.fold.g > 1:
            live = divided(self.head, self.fold.h // self.fold.g)[0] == self.key_head
        if masked and self.fold.s % self.fold.chunk:
            live = live & (self.j < self.fold.s)
        return live


class Pages:
    """Keys that lie in pages of main memory: those of the next chunk are on their way while this one is computed."""

    def __init__(
        self,
        table: jax.Ref,
        pools: tuple[jax.Ref, jax.Ref],
        chunks: tuple[jax.Ref, jax.Ref],
        arrived: jax.Ref,
        fold: Fold,
    ):
        self.table, self.pools, self.chunks, self.arrived, self.fold = table, pools, chunks, arrived, fold

    def arrived_at(self, n: jax.Array, count: jax.Array, place: Any) -> list[jax.Ref]:
        """The keys and values of item n, once they are there; `place(n)` is its batch element and chunk."""
        begin = lambda n: self._each_page(n, place, lambda copy: copy.start())
        pl.when(n == 0)(functools.partial(begin, n))
        pl.when(n + 1 < count)(functools.partial(begin, n + 1))
        pl.when(n < count)(functools.partial(self._each_page, n, place, lambda copy: copy.wait()))
        return [x.at[jax.lax.rem(n, jnp.int32(2))] for x in self.chunks]

    def _each_page(self, n: jax.Array, place: Any, run: Any) -> None:
        """What to do with the copies of item n, of the pages of which something is seen."""
        (b, chunk), slot = place(n), jax.lax.rem(n, jnp.int32(2))
        per, rows = self.fold.chunk // self.fold.page, self.fold.page * self.fold.g
        first = (b * self.fold.chunks + chunk) * per

        def one(p: jax.Array, carry: jax.Array) -> jax.Array:
            page = self.table[first + p]

            @pl.when(page >= 0)
            def _():
                for of, (pool, held) in enumerate(zip(self.pools, self.chunks, strict=True)):
                    there = held.at[slot, pl.ds(pl.multiple_of(p * rows, rows), rows)]
                    run(pltpu.make_async_copy(pool.at[page], there, self.arrived.at[slot, of]))

            return carry

        jax.lax.fori_loop(np.int32(0), np.int32(per), one, np.int32(0), unroll=math.gcd(per, _UNROLLED))


class _Step:
    """One step of the grid: a chunk of a batch element's keys."""

    def __init__(
        self,
        *refs: jax.Ref,
        fold: Fold,
        functions: TileFunctions,
        layouts: tuple[FoldedLayout, ...],
        precision: jax.lax.Precision | None,
    ):
        scalars = 3 if fold.page else 2
        self.items, self.counts, self.q, self.k, self.v, *rest = *refs[:2], *refs[scalars:]
        if fold.page:
            *rest, keys, values, arrived = rest
            self.pages = Pages(refs[2], (self.k, self.v), (keys, values), arrived, fold)
        *self.operands, self.out, self.lse, self.remainder, self.top, self.total, self.sum = rest
        self.fold, self.functions, self.layouts, self.precision = fold, functions, layouts, precision
        half, n = pl.program_id(0), pl.program_id(1)
        self.n, self.count = n, self.counts[half]
        item = item_at(self.items, self.counts, half, n, fold)
        self.b, self.chunk, self.kind = parts_of(item)
        before = parts_of(item_at(self.items, self.counts, half, jnp.maximum(n - 1, 0), fold))[0]
        after = parts_of(item_at(self.items, self.counts, half, n + 1, fold))[0]
        if fold.page:
            place = lambda n: parts_of(item_at(self.items, self.counts, half, n, fold))[:2]
            self.k, self.v = self.pages.arrived_at(n, self.count, place)
        self.first = (n == 0) | (before != self.b)
        self.last = (n == self.count - 1) | (after != self.b)

    def begin(self) -> None:
        self.top[...] = jnp.full(self.top.shape, LOWEST, jnp.float32)
        self.total[...] = jnp.zeros(self.total.shape, jnp.float32)
        self.sum[...] = jnp.zeros(self.sum.shape, jnp.float32)

    def scores(self, tile: _Tile, masked: bool) -> jax.Array:
        query, key = self.q[...], self.k[tile.at : tile.at + tile.size, :]
        score = product(query, as_wide(key, query), (1, 1), self.precision)
        score = score if self.functions.scale is None else score * self.functions.scale
        return self.functions.scores(score, tile.i, tile.j, masked, tile.live(masked), self.parts(tile))

    def parts(self, tile: _Tile) -> list[jax.Array]:
        return [x.of_tile(part, tile) for x, part in zip(self.layouts, self.loaded, strict=True)]

    def exp(self, difference: jax.Array) -> jax.Array:
        return jnp.exp2(difference * LOG2E if self.functions.natural else difference)

    def visit(self, masked: bool, careful: bool = False) -> None:
        """The rows' softmax takes in the chunk.  The products of the next columns come before the exponentials of
        these, to overlap with them.

        What no query sees reaches nothing, but 0 * NaN is NaN, and to look for unseen values takes longer than the
        products: of a masked chunk that makes a NaN all is computed once more, `careful`.
        """
        fold = self.fold
        tiles = [_Tile(fold, self.b, self.chunk, at, fold.step) for at in range(0, fold.columns, fold.step)]
        self.loaded = [x.load(ref, self.b, fold) for x, ref in zip(self.layouts, self.operands, strict=True)]
        top, total, out = self.top[...], self.total[...], self.sum[...]
        coming = self.scores(tiles[0], masked)
        for n, tile in enumerate(tiles):
            score = coming
            if n + 1 < len(tiles):
                coming = self.scores(tiles[n + 1], masked)
            higher = jnp.maximum(top, jnp.max(score, axis=1, keepdims=True))
            weight = self.exp(score - lanes(higher, score.shape[1]))
            shrink = self.exp(top - higher)
            top, total = higher, total * shrink + fold_lanes(jnp.add, weight)
            out = out * lanes(shrink, out.shape[1]) + self.weighted(tile, weight, score, masked, careful)

        def keep() -> None:
            self.top[...], self.total[...], self.sum[...] = top, total, out

        if not masked or careful:
            keep()
            return
        spoilt = jnp.any(out != out)
        pl.when(~spoilt)(keep)
        pl.when(spoilt)(functools.partial(self.visit, True, True))

    def weighted(self, tile: _Tile, weight: jax.Array, score: jax.Array, masked: bool, careful: bool) -> jax.Array:
        """The sum of values that some columns add; `careful`: of those that some query sees."""
        if self.functions.weights is not None:
            weight = self.functions.weights(weight, tile.i, tile.j, masked, self.parts(tile))
            live = tile.live(masked)
            weight = weight if live is True else jnp.where(live, weight, 0)  # of no pair a gate may be anything
        value = as_wide(self.v[tile.at : tile.at + tile.size, :], self.q)
        if careful:
            some = (score != -jnp.inf) & (tile.row < self.fold.t * self.fold.h)
            seen = to_column(jnp.max(some.astype(jnp.float32), axis=0, keepdims=True)) > 0
            value = jnp.where(seen, value, jnp.zeros_like(value))
        return product(weight.astype(value.dtype), value, (1, 0), self.precision)

    def end(self) -> None:
        """Writes what rows have come to; those that saw nothing give 0 and lse -inf."""
        total = jnp.broadcast_to(jnp.sum(self.total[...], axis=1, keepdims=True), self.total.shape)
        top, out = self.top[...], self.sum[...]
        out = jnp.where(lanes(total, out.shape[1]) == 0, 0, out * lanes(reciprocal(total, False), out.shape[1]))
        self.out[...] = out.astype(self.out.dtype)
        log = jnp.log(total) if self.functions.natural else jnp.log2(total)  # log(0) = -inf
        self.lse[...] = lse = top + log
        self.remainder[...] = jnp.where(total == 0, 0, (top - lse) + log)


def as_wide(x: jax.Array, query: Any) -> jax.Array:
    """Numbers of 8 bits in the query's dtype."""
    return x.astype(query.dtype) if x.dtype.itemsize == 1 else x


def item_at(items: jax.Ref, counts: jax.Ref, half: Index, n: Index, fold: Fold) -> jax.Array:
    """Item n of one half; beyond the last the last, whose chunk then stays in fast memory."""
    longest = items.shape[0] // counts.shape[0]
    return items[half * longest + jnp.minimum(n, counts[half] - 1)]


def parts_of(item: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The batch element of an item, and which chunk of its keys it is, and of which kind."""
    return item >> (_CHUNK + _KIND), (item >> _KIND) & (2**_CHUNK - 1), item & (2**_KIND - 1)


def _kernel(*refs: jax.Ref, partial: bool, full: bool, **static: Any):
    step = _Step(*refs, **static)

    @pl.when(step.n < step.count)
    def _():
        pl.when(step.first)(step.begin)
        if full:
            pl.when(step.kind == FULL)(functools.partial(step.visit, False))
        if partial:
            pl.when(step.kind == PARTIAL)(functools.partial(step.visit, True))
        pl.when(step.last)(step.end)


def decode(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    operands: Sequence[jax.Array],
    layouts: tuple[FoldedLayout, ...],
    functions: TileFunctions,
    work: Items,
    fold: Fold,
    b: int,
    pages: jax.Array | None = None,
    *,
    dtype: DTypeLike,
    precision: jax.lax.Precision | None = None,
    memory: int | None = None,
    interpret: Any = False,  # as `pallas_call` takes it
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """out `[halves, b, t h, e]` in `dtype`, lse and what rounding took from it `[halves, b, t h]`, of q
    `[b, t h, d]`, k `[b, s g, d]`, v `[b, s g, e]`: of each half of the keys, to be merged by lse.

    Batch axes may be shorter than b: element n uses entry n % length.  With `pages` `[b, chunks pages of a chunk]`, k
    is `[p, page g, d]` and v `[p, page g, e]`, and a page of which nothing is seen is negative.  `memory` is as in
    `forward`.
    """
    halves = work.counts.shape[0]
    rows, e = fold.rows, v.shape[-1]
    q = jnp.pad(q, ((0, 0), (0, rows - q.shape[1]), (0, 0)))

    def at(half: Index, n: Index, items: jax.Ref, counts: jax.Ref, *_: jax.Ref) -> tuple[jax.Array, jax.Array]:
        return parts_of(item_at(items, counts, half, n, fold))[:2]

    def keys(x: jax.Array) -> pl.BlockSpec:
        if pages is not None:
            return pl.BlockSpec(memory_space=pl.ANY)

        def index(*grid: Any):
            b, c = at(*grid)
            return entry(b, x.shape[0]), c, 0

        return pl.BlockSpec((None, fold.columns, x.shape[-1]), index)

    of_queries = pl.BlockSpec((None, rows, q.shape[-1]), lambda *grid: (entry(at(*grid)[0], q.shape[0]), 0, 0))
    of_rows = lambda width: pl.BlockSpec((None, None, rows, width), lambda *grid: (grid[0], at(*grid)[0], 0, 0))
    per_row = pltpu.VMEM((rows, LANES), jnp.float32)
    scratch = [per_row, per_row, pltpu.VMEM((rows, e), jnp.float32)]
    scalars = [work.items.reshape(-1), work.counts]
    if pages is not None:
        scalars.append(pages.reshape(-1))
        scratch += [pltpu.VMEM((2, fold.columns, x.shape[-1]), x.dtype) for x in (k, v)]
        scratch.append(pltpu.SemaphoreType.DMA((2, 2)))
    out, *per_query = pl.pallas_call(
        functools.partial(
            _kernel,
            fold=fold,
            functions=functions,
            layouts=layouts,
            partial=work.partial,
            full=work.full,
            precision=precision,
        ),
        name="jattn_decode",
        interpret=interpret,
        out_shape=[array((halves, b, rows, e), dtype), *[array((halves, b, rows, LANES), jnp.float32)] * 2],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(halves, work.longest),
            in_specs=[of_queries, keys(k), keys(v), *(x.spec(fold, at) for x in layouts)],
            out_specs=[of_rows(e), of_rows(LANES), of_rows(LANES)],
            scratch_shapes=scratch,
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=memory, disable_bounds_checks=True
        ),
    )(*scalars, q, k, v, *operands)
    n = fold.t * fold.h
    return out[:, :, :n], *functions.natural_lse(*(x[:, :, :n, 0] for x in per_query))
