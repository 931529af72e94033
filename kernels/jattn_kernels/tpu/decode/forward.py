"""Forward for few queries, as in decoding: all heads of a batch element at once, keys in the layout in which they lie.

With few queries a tile of one head has next to no rows, and time goes into reading the keys.  So the heads fold: rows
are the queries of all heads, `[t h, d]`, columns the keys of all key heads, `[s g, d]`, both of them plain reshapes of
`[t, h, d]` and `[s, g, d]`, so that no array moves.  Of the products, those of a query with another head's keys are
thrown away: the units have time for them while the next keys come.

Grid: half of the keys (of chips with two cores), item of work.  An item is a chunk of one batch element's keys; chunks
that nothing is seen of are not among them, and how many there are is known at run time alone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from jattn_kernels.tiles.functions import LOG2E, TileFunctions
from jattn_kernels.tiles.place import Index
from jattn_kernels.tiles.work import FULL, PARTIAL
from jattn_kernels.tpu.decode.fold import Fold, divided, entry
from jattn_kernels.tpu.decode.items import Items, item_at, parts_of
from jattn_kernels.tpu.decode.keys import ALONG, SLOTS, Copies, copied, part, stored, working
from jattn_kernels.tpu.decode.operands import FoldedLayout, key_scales
from jattn_kernels.tpu.decode.turned import along_lanes, turn, turned_back
from jattn_kernels.tpu.forward import LOWEST, fold_lanes, lanes, reciprocal
from jattn_kernels.tpu.grid_step import product
from jattn_kernels.tpu.lanes import to_column
from jattn_kernels.tpu.layout import array
from jattn_kernels.tpu.sizes import LANES


class _ChunkTile:
    """Some columns of a chunk with all rows: where they stand."""

    def __init__(self, fold: Fold, b: Index, chunk: Index, at: int, size: int):
        self.fold, self.b, self.at, self.size = fold, b, at, size
        self.row = jax.lax.broadcasted_iota(jnp.int32, (fold.rows, 1), 0)
        column = jax.lax.broadcasted_iota(jnp.int32, (1, size), 1) + at
        self.i, head = divided(self.row, fold.h)
        self.row_key_head = fold.key_head(head)
        key, self.key_head = divided(column, fold.g)
        self.j = key + chunk * fold.chunk
        if LANES % fold.g == 0:  # the compiler sees not by itself that registers are alike
            one = divided(jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1), fold.g)[1]
            self.key_head = jnp.concatenate([one] * (size // LANES), 1)

    def live(self, masked: bool) -> Any:
        """Which pairs there are: of a query and a key of its own head, which exists; True for all."""
        live = True
        if self.fold.g > 1:
            live = self.row_key_head == self.key_head
        if masked and self.fold.s % self.fold.chunk:
            live = live & (self.j < self.fold.s)
        return live


class _ChunkStep:
    """One step of the grid: a chunk of a batch element's keys."""

    def __init__(
        self,
        *refs: jax.Ref,
        fold: Fold,
        functions: TileFunctions,
        layouts: tuple[FoldedLayout, ...],
        precision: jax.lax.Precision | None,
        scaled: tuple[bool, bool],
        lines: int,
    ):
        rest = list(refs)
        take = lambda n: [rest.pop(0) for _ in range(n)]
        self.items, self.counts = take(2)
        table = take(1)[0] if fold.page else None
        numbers = take(sum(not x.along for x in layouts))
        arrays = take(3 + sum(scaled))
        others = take(len(layouts) - len(numbers))
        self.operands = [(others if x.along else numbers).pop(0) for x in layouts]
        self.out, self.per_query, self.top, self.total, self.sum = take(5)
        if fold.turned:
            self.turned, self.staged = take(2)
        arrived, (turn, *held) = take(len(arrays)), rest
        self.fold, self.functions, self.layouts, self.precision = fold, functions, layouts, precision
        half, n = pl.program_id(0), pl.program_id(1)
        self.n, self.count, halves = n, self.counts[half], self.counts.shape[0]
        item = item_at(self.items, halves, half, n)
        self.b, self.chunk, self.kind = parts_of(item)
        before = parts_of(item_at(self.items, halves, half, jnp.maximum(n - 1, 0)))[0]
        after = parts_of(item_at(self.items, halves, half, n + 1))[0]
        copies = Copies(arrays, held, arrived, turn, fold, lines, table)
        slot = copies.wait(n, self.count, lambda n: parts_of(item_at(self.items, halves, half, n))[:2])
        q, self.k, self.v, *given = copies.held
        self.slot: Index = slot if fold.whole or fold.page else 0  # where of keys and values the chunk stands
        self.q, given = q.at[slot], iter(x.at[slot] if fold.whole else x for x in given)
        self.scales = [next(given) if x else None for x in scaled]
        self.first = (n == 0) | (before != self.b)
        self.last = (n == self.count - 1) | (after != self.b)

    def begin(self) -> None:
        self.top[...] = jnp.full(self.top.shape, LOWEST, jnp.float32)
        self.total[...] = jnp.zeros(self.total.shape, jnp.float32)
        self.sum[...] = jnp.zeros(self.sum.shape, jnp.float32)
        if self.fold.turned:
            turn(self.q[...], self.turned, self.staged, self.fold)

    def query(self) -> jax.Array:
        return self.turned[...].astype(self.q.dtype) if self.fold.turned else self.q[...]

    def scores(self, tile: _ChunkTile, masked: bool) -> jax.Array:
        score = product(
            self.query(), stored(self.k, self.slot, tile.at, tile.size, self.q.dtype), (1, 1), self.precision
        )
        factor = self.scale(0, tile, self.functions.scale)
        score = score if factor is None else score * factor
        return self.functions.scores(score, tile.i, tile.j, masked, tile.live(masked), self.parts(tile))

    def scale(self, which: int, tile: _ChunkTile, factor: float | None = None) -> Any:
        """What a tile's scores (0) or weights (1) are multiplied with: the scales of keys or of values where they have
        any, times `factor`."""
        ref, g = self.scales[which], self.fold.g
        if ref is None:
            return factor
        own = ref[:, tile.at // g : (tile.at + tile.size) // g]
        return key_scales(own if factor is None else own * factor, self.fold)

    def parts(self, tile: _ChunkTile) -> list[jax.Array]:
        return [x.of_tile(part, tile.at, tile.size) for x, part in zip(self.layouts, self.loaded, strict=True)]

    def exp(self, difference: jax.Array) -> jax.Array:
        return jnp.exp2(difference * LOG2E if self.functions.natural else difference)

    def visit(self, masked: bool, careful: bool = False) -> None:
        """The rows' softmax takes in the chunk.  The products of the next columns come before the exponentials of
        these, to overlap with them.

        What no query sees reaches nothing, but 0 * NaN is NaN, and to look for unseen values takes longer than the
        products: of a masked chunk that makes a NaN all is computed once more, `careful`.
        """
        fold = self.fold
        tiles = [_ChunkTile(fold, self.b, self.chunk, at, fold.step) for at in range(0, fold.columns, fold.step)]
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

    def weighted(self, tile: _ChunkTile, weight: jax.Array, score: jax.Array, masked: bool, careful: bool) -> jax.Array:
        """The sum of values that some columns add; `careful`: of those that some query sees."""
        if self.functions.weights is not None:
            weight = self.functions.weights(weight, tile.i, tile.j, masked, self.parts(tile))
            live = tile.live(masked)
            weight = weight if live is True else jnp.where(live, weight, 0)  # of no pair a gate may be anything
        scale = self.scale(1, tile)
        if scale is not None:
            weight = weight * scale
            weight = jnp.where(score == -jnp.inf, 0, weight) if careful else weight
        value = stored(self.v, self.slot, tile.at, tile.size, self.q.dtype)
        if careful and jnp.issubdtype(value.dtype, jnp.floating):
            some = (score != -jnp.inf) & (tile.row < self.fold.t * self.fold.h)
            seen = to_column(jnp.max(some.astype(jnp.float32), axis=0, keepdims=True)) > 0
            value = jnp.where(seen, value, jnp.zeros_like(value))
        return product(weight.astype(working(value.dtype, self.q.dtype)), value, (1, 0), self.precision)

    def end(self) -> None:
        """Writes what rows have come to; those that saw nothing give 0 and lse -inf."""
        total = jnp.broadcast_to(jnp.sum(self.total[...], axis=1, keepdims=True), self.total.shape)
        out = self.sum[...]
        out = jnp.where(lanes(total, out.shape[1]) == 0, 0, out * lanes(reciprocal(total, False), out.shape[1]))
        top, total = (along_lanes(x, self.fold) for x in (self.top[...], total))
        log = jnp.log(total) if self.functions.natural else jnp.log2(total)  # log(0) = -inf
        lse = top + log
        self.per_query[:1, :], self.per_query[1:, :] = lse, jnp.where(total == 0, 0, (top - lse) + log)
        out = turned_back(out, self.staged, self.fold) if self.fold.turned else out
        self.out[...] = out.astype(self.out.dtype)


def _kernel(*refs: jax.Ref, partial: bool, full: bool, **static: Any):
    step = _ChunkStep(*refs, **static)

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
    scales: Sequence[jax.Array | None] = (None, None),
    *,
    dtype: DTypeLike,
    precision: jax.lax.Precision | None = None,
    memory: int | None = None,
    interpret: Any = False,  # as `pallas_call` takes it
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """out `[halves, b, t h, e]` in `dtype`, lse and what rounding took from it `[halves, b, t h]`, of q
    `[b, t h, d]`, k `[b, s g, d]`, v `[b, s g, e]`: of each half of the keys, to be merged by lse.

    Batch axes may be shorter than b: element n uses entry n % length.  With `pages` `[b, chunks pages of a chunk]`, k
    is `[p, page g, d]` and v `[p, page g, e]`, and a page of which nothing is seen is negative.  `scales`, of keys and
    of values, are `[b, g, s]`.  `memory` is as in `forward`.
    """
    halves = work.counts.shape[0]
    rows, e, lines = fold.rows, v.shape[-1], b
    q = jnp.pad(q, ((0, 0), (0, rows - q.shape[1]), (0, 0)))

    def at(half: Index, n: Index, items: jax.Ref, *_: jax.Ref) -> tuple[jax.Array, jax.Array]:
        return parts_of(item_at(items, halves, half, n))[:2]

    def keys(x: jax.Array) -> pl.BlockSpec:
        def index(*grid: Any):
            b, c = at(*grid)
            return entry(b, x.shape[0], lines), c, 0

        return pl.BlockSpec((1, fold.columns, x.shape[-1]), index)

    of_rows = lambda n, width: pl.BlockSpec((None, None, n, width), lambda *grid: (grid[0], at(*grid)[0], 0, 0))

    def of_key_heads(x: jax.Array) -> pl.BlockSpec:
        def index(*grid: Any):
            b, c = at(*grid)
            return entry(b, x.shape[0], lines), 0, c

        return pl.BlockSpec((None, fold.g, fold.chunk), index)

    given = [x for x in scales if x is not None]
    arrays = [q, k, v, *given]
    own = copied(fold, len(arrays))
    specs = [None, keys(k), keys(v), *map(of_key_heads, given)]
    specs = [pl.BlockSpec(memory_space=pl.ANY) if mine else x for x, mine in zip(specs, own, strict=True)]
    per_row = pltpu.VMEM((rows, LANES), jnp.float32)
    scratch = [per_row, per_row, pltpu.VMEM((rows, e), jnp.float32)]
    scalars = [work.items.reshape(-1), work.counts]
    if pages is not None:
        scalars.append(pages.reshape(-1))
    scalars += [x for x, layout in zip(operands, layouts, strict=True) if not layout.along]
    if fold.turned:
        scratch += [pltpu.VMEM((rows, x), jnp.float32) for x in (q.shape[-1], LANES)]
    mine = [(x, along) for x, along, mine in zip(arrays, ALONG, own, strict=False) if mine]
    scratch += [pltpu.SemaphoreType.DMA((SLOTS,)) for _ in arrays]
    scratch.append(pltpu.SMEM((1,), jnp.int32))
    scratch += [pltpu.VMEM((SLOTS, *part(x, along, fold)), x.dtype) for x, along in mine]
    others = [(x, layout) for x, layout in zip(operands, layouts, strict=True) if layout.along]
    out, per_query = pl.pallas_call(
        functools.partial(
            _kernel,
            fold=fold,
            functions=functions,
            layouts=layouts,
            partial=work.partial,
            full=work.full,
            precision=precision,
            scaled=tuple(x is not None for x in scales),
            lines=lines,
        ),
        name="jattn_decode",
        interpret=interpret,
        out_shape=[array((halves, b, rows, e), dtype), array((halves, b, 2, rows), jnp.float32)],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(halves, work.longest),
            in_specs=[
                *specs,
                *(layout.spec(fold, at, lines) for _, layout in others),
            ],
            out_specs=[of_rows(rows, e), of_rows(2, rows)],
            scratch_shapes=scratch,
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=memory, disable_bounds_checks=True
        ),
    )(*scalars, *arrays, *(x for x, _ in others))
    n = fold.t * fold.h
    return out[:, :, :n], *functions.natural_lse(per_query[:, :, 0, :n], per_query[:, :, 1, :n])
