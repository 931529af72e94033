"""Forward, on every machine: out and lse of softmax attention, with every mask, mod and gate as tile functions.

A block is a query tile of one head: one warpgroup copies the key and value tiles that the lists name, the others, each
with its own rows, compute.  Keys and values of 8 bits are copied as they are, and the warpgroup that copies makes them
what the others multiply.
"""

# The type checker sees jax 0.10, and Mosaic is that of 0.11 and later.
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportArgumentType=false

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Unpack

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jattn_kernels.gpu.block import REGISTERS, ThreadBlock, ThreadBlockOptions, entry, launch, tiles_in
from jattn_kernels.gpu.layout import OperandLayout, Staging
from jattn_kernels.gpu.lists import LineLists
from jattn_kernels.gpu.sizes import EIGHT, STORED, Lengths, TileSizes
from jattn_kernels.tiles.functions import LOG2E, TileFunctions

_WIDENING = 216, 72  # as `REGISTERS`, where the warpgroup that copies widens numbers of 8 bits too

Copy = Callable[[jax.Ref, tuple[Any, ...], tuple[pl.Slice, ...]], None]
"""(ref, at, rows): brings `ref[at]`, in global memory, to those rows of a tile; to all of it where none are named."""

Source = Callable[[jax.Array, jax.Array, Copy], None]
"""(tile, g, copy): has `copy` bring a tile of keys or values of key head g."""


class StoredTiles(NamedTuple):
    """Shared memory for tiles of keys or values of 8 bits, and when each has arrived."""

    tiles: jax.Ref
    arrived: jax.Ref


LOWEST = float(jnp.finfo(jnp.float32).min)  # what a row's maximum starts from: no difference is then inf - inf


class Forward(ThreadBlock):
    """A query tile of one head; the products are the machine's."""

    def __init__(
        self,
        refs: Sequence[Any],
        *,
        group: int,
        tiles: int,
        parts: int,
        batch: int,
        batches: tuple[int, ...],
        lists: LineLists,
        page: int | None,
        edges: bool,
        **static: Unpack[ThreadBlockOptions],
    ):
        super().__init__(**static)
        self.group, self.batches, self.page = group, batches, page
        (self.q, self.k, self.v), rest = refs[:3], refs[3:]
        self.table, rest = rest[: page is not None], rest[page is not None :]
        self.edges, rest = rest[: 2 * edges], rest[2 * edges :]
        listed, rest = rest[: lists.arrays], rest[lists.arrays :]
        self.operands, rest = rest[: len(self.staging.layouts)], rest[len(self.staging.layouts) :]
        self.out, *self.of_rows = rest[:3]
        self.q_sm, self.k_sm, self.v_sm, out_sm, self.row_sm, *stored = rest[3:10]
        self.k_stored, self.v_stored = (None if x is None else StoredTiles(*x) for x in stored)
        self.q_there, self.k_there, self.v_there, self.k_free, self.v_free, self.own, *self.staged = rest[10:]
        self.out_sm = self.q_sm if out_sm is None else out_sm  # the queries are read whole before it is written
        self.b, self.h = lax.axis_index("b"), lax.axis_index("h")
        # The last rows first: of a causal mask they take longest, and what begins last should be short.
        line = tiles - 1 - lax.axis_index("q")
        # With keys in parts a line is one of them; all have the only tile of queries, and a result of their own.
        self.first = (line if parts == 1 else lax.div(line, jnp.int32(parts))) * self.sizes.rows
        self.result = self.b if parts == 1 else line * batch + self.b
        self.visits = lists.visits(listed, self.b, self.h, line)

    # What the machine does its own way

    @classmethod
    def for_widths(cls, d: int, e: int) -> type[Forward]:
        """The blocks for keys of width d and values of width e."""
        del d, e
        return cls

    def begin(self, wg: jax.Array) -> Any:
        """The sum over values that nothing was added to yet: what `add` takes and `write` writes."""
        raise NotImplementedError

    def product(self, wg: jax.Array, slot: jax.Array) -> Any:
        """The product of the warpgroup's queries and the keys in a slot, which have arrived."""
        raise NotImplementedError

    def begun(self, wg: jax.Array, slot: jax.Array, out: Any) -> tuple[Any, Any]:
        """The product of a tile and the sum over values, where `add` may have begun both."""
        return self.product(wg, slot), out

    def shrink(self, wg: jax.Array, out: Any, factor: jax.Array) -> Any:
        """The sum times a factor for each row."""
        raise NotImplementedError

    def add(self, wg: jax.Array, n: jax.Array, slot: jax.Array, out: Any, weights: jax.Array) -> Any:
        """The sum and what the weights take of the n-th tile's values in a slot, once they are there; it frees them."""
        raise NotImplementedError

    def write(self, wg: jax.Array, out: Any, share: jax.Array, unseen: jax.Array) -> None:
        """The sum times a share for each row, 0 where a row is `unseen`, to shared memory."""
        raise NotImplementedError

    # What all do alike

    def divide_registers(self, action: Literal["increase", "decrease"]) -> None:
        """Gives threads that compute more, and those that copy fewer; of two warpgroups all have enough as they are."""
        if self.warpgroups(self.sizes) > 1:
            computing, copying = REGISTERS if self.k_stored is self.v_stored is None else _WIDENING
            plgpu.set_max_registers(computing if action == "increase" else copying, action=action)

    def copy(self) -> None:
        """What the warpgroup that copies does."""
        self.divide_registers("decrease")
        for n in range(STORED - 1):
            for source, stored in ((self.keys, self.k_stored), (self.values, self.v_stored)):
                if stored is not None:
                    self.begin_ahead(jnp.int32(n), source, stored)
        self.stream(self.visits.total, (self.k_free, self.v_free), (self.bring_keys, self.bring_values))

    def bring_keys(self, n: jax.Array, slot: jax.Array) -> None:
        """Brings the n-th tile's keys, and what operands have there."""
        there = self.k_there.at[slot]
        places, copy = (self.first, self.visits.tile(n) * self.sizes.columns), self.copier(there)
        beside = lambda: self.staging.copy_passing(self.operands, self.staged, self.b, self.h, slot, places, copy)
        self.bring_tile(n, self.keys, self.k_sm.at[slot], there, self.k_stored, beside)

    def bring_values(self, n: jax.Array, slot: jax.Array) -> None:
        """Brings the n-th tile's values."""
        self.bring_tile(n, self.values, self.v_sm.at[slot], self.v_there.at[slot], self.v_stored, lambda: None)

    def bring_tile(
        self,
        n: jax.Array,
        source: Source,
        to: jax.Ref,
        there: jax.Ref,
        stored: StoredTiles | None,
        beside: Callable[[], None],
    ) -> None:
        """Brings the n-th tile of keys or values and tells those who wait `there`; `beside()` begins other copies.

        What is `stored` in 8 bits comes by way of memory of its own, ahead of its turn, and is widened then.
        """
        if stored is None:
            self.begin_tile(n, source, to, there)
            return beside()
        self.begin_ahead(n + (STORED - 1), source, stored)
        beside()
        place = lax.rem(n, jnp.int32(STORED))
        plgpu.barrier_wait(stored.arrived.at[place])
        self.machine.widen(stored.tiles.at[place], to)
        plgpu.barrier_arrive(there)

    def begin_ahead(self, n: jax.Array, source: Source, stored: StoredTiles) -> None:
        """Begins to bring the n-th tile, if there is one, to where it is stored in 8 bits."""
        place = lax.rem(n, jnp.int32(STORED))
        begin = lambda: self.begin_tile(n, source, stored.tiles.at[place], stored.arrived.at[place])
        pl.when(n < self.visits.total)(begin)

    def begin_tile(self, n: jax.Array, source: Source, to: jax.Ref, there: jax.Ref) -> None:
        """Begins to bring the n-th tile."""
        g, place = lax.div(self.h, jnp.int32(self.group)), lambda rows: to.at[rows] if rows else to
        copy = lambda ref, at, rows: plgpu.copy_gmem_to_smem(ref.at[at], place(rows), there)
        source(self.visits.tile(n), g, copy)

    def keys(self, tile: jax.Array, g: jax.Array, copy: Copy) -> None:
        """Copies the keys of a tile, `copy(ref, at, rows)` those that are `rows` of it."""
        for at, rows in self.stretches(tile * self.sizes.columns, self.batches[1]):
            copy(self.k, (*at, g), rows)

    def stretches(self, first: jax.Array, batch: int) -> list[tuple[tuple[Any, ...], tuple[pl.Slice, ...]]]:
        """Where the keys or values of a tile from `first` on lie, and which rows of the tile they are: in a row, or in
        pages, of which the tile has several or is a part of one."""
        columns = self.sizes.columns
        if self.page is None:
            return [((entry(self.b, batch), pl.ds(first, columns)), ())]
        size, (table,) = min(columns, self.page), self.table
        found = []
        for row in range(0, columns, size):
            place = first + row
            page = table[entry(self.b, batch), lax.div(place, jnp.int32(self.page))]
            found.append(((page, pl.ds(lax.rem(place, jnp.int32(self.page)), size)), (pl.ds(row, size),)))
        return found

    def values(self, tile: jax.Array, g: jax.Array, copy: Copy) -> None:
        """Copies the values of a tile, `copy(ref, at, rows)` those that are `rows` of it: of an edge, where what nobody
        sees is 0."""
        columns = self.sizes.columns
        found = self.stretches(tile * columns, self.batches[2])

        def stored() -> None:
            for at, rows in found:
                copy(self.v, (*at, g), rows)

        def of_edge(n: int) -> None:
            for _, rows in found:
                row, size = (rows[0].start, rows[0].size) if rows else (0, columns)
                copy(values, (entry(self.b, values.shape[0]), pl.ds(n * columns + row, size), g), rows)

        def choose(n: int) -> None:
            if n == count:
                return stored()
            here = tile == tiles[entry(self.b, tiles.shape[0]), n]
            pl.when(here)(lambda: of_edge(n))
            pl.when(~here)(lambda: choose(n + 1))

        if not self.edges:
            return stored()
        tiles, values = self.edges
        count = tiles.shape[1]
        choose(0)

    def compute(self, wg: jax.Array) -> None:
        """What a warpgroup that computes does: out and lse of its rows."""
        self.divide_registers("increase")
        machine, height = self.machine, self.sizes.height
        first, arrived = self.first + wg * height, self.q_there.at[wg]
        rows = pl.ds(first, height)
        plgpu.copy_gmem_to_smem(self.q.at[entry(self.b, self.batches[0]), rows, self.h], self.q_sm.at[wg], arrived)
        self.staging.copy_resident(self.operands, self.staged, self.b, self.h, wg, first, self.copier(arrived))
        plgpu.barrier_wait(arrived)
        resident = self.staging.read_resident(machine, self.operands, self.staged, self.b, self.h, wg, first)
        self.finish(wg, rows, *self.softmax(wg, first, resident, self.begin(wg)))

    def softmax(self, wg: jax.Array, first: jax.Array, resident: Sequence[Any], out: Any) -> tuple[Any, Any, Any]:
        """The sum over values, begun with `out`, the rows' maxima, and what their weights add up to."""
        state = out, self.lowest(), self.machine.zeros(self.sizes.height, EIGHT)
        out, top, total = self.loop(wg, first, resident, state)
        return out, top, self.machine.row_sum(total)

    def lowest(self) -> jax.Array:
        """What rows' maxima start from; where none is taken off they stay 0."""
        start = 0.0 if self.functions.small else LOWEST
        return self.machine.row(jnp.full((self.sizes.height,), start, jnp.float32))

    def loop(self, wg: jax.Array, first: jax.Array, resident: Sequence[Any], state: Any) -> Any:
        """Every tile that the lists name."""
        for masked, begin, end in self.visits.kinds():
            state = lax.fori_loop(begin, end, functools.partial(self.tile, wg, first, resident, masked), state)
        return state

    def slot(self, n: jax.Array) -> jax.Array:
        """Where the n-th tile lies."""
        return lax.rem(n, jnp.int32(self.sizes.steps))

    def arrived(self, n: jax.Array) -> jax.Array:
        """The slot of the n-th tile, once its keys are there."""
        slot = self.slot(n)
        plgpu.barrier_wait(self.k_there.at[slot])
        return slot

    def leave(self, slot: jax.Array) -> None:
        """The keys there are not needed any more."""
        plgpu.barrier_arrive(self.k_free.at[slot])

    def tile(
        self, wg: jax.Array, row: jax.Array, resident: Sequence[Any], masked: bool, n: jax.Array, state: Any
    ) -> tuple[Any, jax.Array, jax.Array]:
        """The softmax of the rows takes in a tile of keys."""
        out, top, total = state
        machine, unit = self.machine, self.unit()
        column = self.visits.tile(n) * self.sizes.columns

        def given(columns: slice) -> tuple[Any, ...]:
            places = self.positions(row, column + columns.start, columns.stop - columns.start)
            return *places, self.parts(wg, slot, resident, columns, (self.first, column))

        slot = self.arrived(n)
        product, out = self.begun(wg, slot, out)
        score = self.evaluate(functools.partial(self.scores, masked=masked), [product], given)
        if self.functions.weights is None:
            self.leave(slot)
        along = lambda x: machine.broadcast(x, 0, score.shape)
        if self.functions.small:
            new, shrink, p = top, None, jnp.exp2(score * unit)
        elif self.functions.natural:
            # The difference first: scores may be so large that a multiple of them is not finite.
            new = jnp.maximum(top, machine.row_max(score))
            shrink, p = jnp.exp2((top - new) * unit), jnp.exp2((score - along(new)) * unit)
        else:  # together with the difference the scale costs nothing
            new = jnp.maximum(top, machine.row_max(score) * unit)
            shrink, p = jnp.exp2(top - new), jnp.exp2(score * unit - along(new))
        if shrink is not None:
            out, total = self.shrink(wg, out, shrink), total * machine.broadcast(shrink, 0, total.shape)
        total = total + machine.in_eights(p)
        if self.functions.weights is not None:
            gates = self.functions.weights
            p = self.evaluate(lambda p, i, j, parts: gates(p, i, j, masked, parts), [p], given)
            self.leave(slot)
        p = p.astype(self.q_sm.dtype)
        # What follows is products alone: where warpgroups take turns at the matrix unit, all of the above comes before.
        out, total, new, p = lax.optimization_barrier((out, total, new, p))
        return self.add(wg, n, slot, out, p), new, total

    def finish(self, wg: jax.Array, rows: pl.Slice, out: Any, top: jax.Array, total: jax.Array) -> None:
        """Writes what rows have come to; those that saw nothing give 0 and lse -inf."""
        unseen = total == 0
        self.write(wg, out, jnp.where(unseen, 0.0, 1 / total), unseen)
        for n, x in enumerate(self.logarithms(top, total)):
            self.row_sm.at[n, wg][...] = x
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(self.out_sm.at[wg], self.out.at[self.result, rows, self.h])
        for n, ref in enumerate(self.of_rows):
            plgpu.copy_smem_to_gmem(self.row_sm.at[n, wg], ref.at[self.result, self.h, rows])
        plgpu.wait_smem_to_gmem(0)

    def logarithms(self, top: jax.Array, total: jax.Array) -> list[jax.Array]:
        """lse and what rounding took from it, in the units of the scores."""
        unseen, log = total == 0, jnp.log(total) * (1.0 if self.functions.natural else LOG2E)
        lse = top + log
        return [jnp.where(unseen, -jnp.inf, lse), jnp.where(unseen, 0.0, (top - lse) + log)]


def run(
    kind: type[Forward],
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    operands: Sequence[jax.Array],
    layouts: tuple[OperandLayout, ...],
    functions: TileFunctions,
    lists: LineLists,
    listed: Sequence[jax.Array],
    sizes: TileSizes,
    *,
    parts: int = 1,
    table: jax.Array | None = None,
    edges: tuple[jax.Array, jax.Array] | None = None,
    interpret: plgpu.InterpretGPUParams | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """out `[b, t, h, e]`, and in float32 lse `[b, t, h]` and what rounding took from it, of q `[b, t, h, d]`, k
    `[b, s, g, d]`, v `[b, s, g, e]`, of one dtype of 16 bits; d and e are multiples of 16, at most 256.  But on
    Ampere k and v may be of 8 bits, where d and e are multiples of 32.

    Batch axes may be shorter than the longest: element b uses entry b % length.  `listed` are the arrays of `lists`,
    whose lines are query tiles; `interpret`: how the simulator is to run, in the place of a GPU; `kind`: the machine's
    blocks.

    Few queries, of one tile, may see keys in `parts`, which then are the lines of `lists`: there is a result of each
    part, `[parts b, ..]`, to be merged by their lse.

    With a `table` `[b, m]` k and v are pools `[p, page, g, ..]`: key j of element b is row j % page of page
    `table[b, j // page]`, one of the p.  A tile of keys is a number of pages, or pages are a number of tiles.

    `edges`: numbers of tiles, `[b, n]`, and the values of those tiles, `[b, n columns, g, e]`, which are taken in the
    place of what stands in v.
    """
    (_, t, h, d), (_, s, g, e) = q.shape, v.shape
    page, pieces = (None, 1) if table is None else (s, max(1, sizes.columns // s))
    if table is not None:
        if max(s, sizes.columns) % min(s, sizes.columns) or s % EIGHT:
            raise ValueError(f"pages of {s} keys and tiles of {sizes.columns} do not make up one another")
        s, missing = s * table.shape[1], -table.shape[1] % pieces
        table = jnp.pad(table, ((0, 0), (0, missing)))
    kind = kind.for_widths(d, e)
    computing = kind.warpgroups(sizes)
    batches = tuple(x.shape[0] for x in ((q, k, v) if table is None else (q, table, table)))
    b = max(*batches, lists.batch, *(x.batch for x in layouts), *(len(x) for x in edges or ()))
    tiles = pl.cdiv(t, sizes.rows)
    if parts > 1 and tiles > 1:
        raise ValueError(f"keys in parts are for one tile of queries: {t} are more than the {sizes.rows} of {sizes}")
    staging = Staging(layouts, "t", sizes, Lengths(t, s).padded["t"], direct=not kind.copies)
    stretch = kind.stretch(sizes)
    is_narrow = lambda x: x.dtype.itemsize == 1
    arrived = kind.barrier(num_arrivals=pieces, num_barriers=STORED)
    stored = lambda x: [tiles_in(STORED, sizes.columns, x.shape[-1], x.dtype, 128), arrived]
    came = [1 if is_narrow(x) else pieces for x in (k, v)]  # who widens a tile tells of all its pieces
    of_rows = [jax.ShapeDtypeStruct((parts * b, h, tiles * sizes.rows), jnp.float32)] * 2
    barriers = functools.partial(kind.barrier, num_barriers=sizes.steps)
    out, *of_rows = launch(
        kind,
        "jattn_forward",
        {"h": h, "q": tiles * parts, "b": b},
        computing=computing,
        out_type=[jax.ShapeDtypeStruct((parts * b, kind.length(t), h, e), q.dtype), *of_rows],
        scratch_types=[
            tiles_in(computing, sizes.height, d, q.dtype, stretch),
            tiles_in(sizes.steps, sizes.columns, d, q.dtype, stretch),
            tiles_in(sizes.steps, sizes.columns, e, q.dtype, stretch),
            None if d == e else tiles_in(computing, sizes.height, e, q.dtype, stretch),
            plgpu.SMEM((len(of_rows), computing, sizes.height), jnp.float32) if kind.copies else None,
            *(stored(x) if is_narrow(x) else None for x in (k, v)),
            kind.barrier(num_arrivals=1 + staging.resident, num_barriers=computing),
            barriers(num_arrivals=came[0] + staging.passing),
            barriers(num_arrivals=came[1]),
            barriers(num_arrivals=computing),
            barriers(num_arrivals=computing),
            kind.scratch(d, e, q.dtype, sizes, interpret is not None),
            *staging.scratch(),
        ],
        group=h // g,
        tiles=tiles * parts,
        parts=parts,
        batch=b,
        batches=batches,
        lists=lists,
        page=page,
        edges=edges is not None,
        functions=functions,
        staging=staging,
        sizes=sizes,
        lengths=(t, s),
        interpret=interpret,
    )(*map(kind.filled_up, (q, k, v)), *([] if table is None else [table]), *(edges or ()), *listed, *operands)
    return out[:, :t], *functions.natural_lse(*(jnp.swapaxes(x[:, :, :t], 1, 2) for x in of_rows))
