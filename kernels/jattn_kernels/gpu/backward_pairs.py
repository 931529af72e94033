"""Backward along pairs, on every machine: the gradient of an operand with both axes, or of one along diagonals.

A block is a tile of the operand, a rectangle or all rectangles along a diagonal of tiles.  The scores that it takes
part in go by, of every batch element and head that share it, and their gradients are added up in registers: nobody else
adds to its place.  The rows of a warpgroup's tile are queries, and go by as keys do.
"""

# The type checker sees jax 0.10, and Mosaic is that of 0.11 and later.
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportArgumentType=false

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jattn_kernels.gpu.block import REGISTERS, ThreadBlockOptions, entry, launch, tiles_in
from jattn_kernels.gpu.gradients import GradientBlock, OfQueries
from jattn_kernels.gpu.layout import OperandLayout, Staging
from jattn_kernels.gpu.lists import LineLists, LineVisits
from jattn_kernels.gpu.lowering import Row
from jattn_kernels.gpu.sizes import Lengths, TileSizes
from jattn_kernels.tiles.functions import TileFunctions
from jattn_kernels.tiles.place import Index


class Pairs(GradientBlock):
    """A tile of one operand; the products are the machine's."""

    def __init__(
        self,
        refs: Sequence[Any],
        *,
        group: int,
        heads: int,
        elements: int,
        batches: tuple[int, ...],
        lists: LineLists,
        learned: tuple[int, ...],
        **static: Unpack[ThreadBlockOptions],
    ):
        super().__init__(**static)
        self.group, self.elements, self.batches, self.lists, self.learned = group, elements, batches, lists, learned
        (self.layout,) = (self.staging.layouts[n] for n in learned)
        self.computing = self.sizes.rows // self.sizes.height
        self.heads = heads if self.layout.heads == 1 else 1  # how many heads share an entry
        (self.q, self.k, self.v, self.dout, *self.of_rows), rest = refs[:6], refs[6:]
        self.listed, rest = rest[: lists.arrays], rest[lists.arrays :]
        self.operands, rest = rest[: len(self.staging.layouts)], rest[len(self.staging.layouts) :]
        self.gradient, self.q_sm, self.dout_sm, self.k_sm, self.v_sm, self.row_sm, self.tile_sm, *rest = rest
        self.sum_sm, self.there, self.free, self.own, *self.staged = rest
        self.b, self.h, self.line = lax.axis_index("b"), lax.axis_index("h"), lax.axis_index("line")

    # What the machine does its own way

    def products(self, wg: Index, place: Index, slot: jax.Array) -> tuple[Any, Any]:
        """The products of the queries in a place and the keys in a slot, and of the cotangents and the values there."""
        raise NotImplementedError

    # What all do alike

    def element(self, n: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Batch element and head of the n-th that share the operand's entry."""
        b, h = (f(n, jnp.int32(self.heads)) for f in (lax.div, lax.rem))
        return self.b + b * self.layout.batch, self.h + h

    def corner(self, visits: LineVisits, n: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The first query and the first key of the n-th tile that goes by."""
        sizes, tile = self.sizes, visits.tile(n)
        if self.layout.along == "ts":
            keys = jnp.int32(pl.cdiv(self.s, sizes.columns))
            return lax.div(self.line, keys) * sizes.rows, lax.rem(self.line, keys) * sizes.columns
        below = (pl.cdiv(self.t, sizes.rows) - 1) * sizes.rows  # what the first diagonal lies below the corner
        return tile * sizes.rows, self.line * sizes.columns + tile * sizes.rows - below

    def copy(self) -> None:
        """What the warpgroup that copies does."""
        plgpu.set_max_registers(REGISTERS[1], action="decrease")
        steps, height = self.sizes.steps, self.sizes.height

        def of_element(n: jax.Array, before: jax.Array) -> jax.Array:
            b, h = self.element(n)
            visits, g = self.lists.visits(self.listed, b, h, self.line), lax.div(h, jnp.int32(self.group))

            def one(n: jax.Array, _: None) -> None:
                step, (i, j) = before + n, self.corner(visits, n)
                slot = lax.rem(step, jnp.int32(steps))
                pl.when(step >= steps)(lambda: plgpu.barrier_wait(self.free.at[slot]))
                there, keys = self.there.at[slot], pl.ds(j, self.sizes.columns)
                for wg in range(self.computing):
                    queries, place = pl.ds(i + wg * height, height), slot * self.computing + wg
                    at = entry(b, self.batches[0]), queries, h
                    plgpu.copy_gmem_to_smem(self.q.at[at], self.q_sm.at[place], there)
                    plgpu.copy_gmem_to_smem(self.dout.at[b, queries, h], self.dout_sm.at[place], there)
                    for row, ref in enumerate(self.of_rows):
                        plgpu.copy_gmem_to_smem(ref.at[b, h, queries], self.row_sm.at[row, place], there)
                for ref, to, batch in ((self.k, self.k_sm, self.batches[1]), (self.v, self.v_sm, self.batches[2])):
                    plgpu.copy_gmem_to_smem(ref.at[entry(b, batch), keys, g], to.at[slot], there)
                self.staging.copy_passing(self.operands, self.staged, b, h, slot, (i, j), self.copier(there))

            lax.fori_loop(0, visits.total, one, None)
            return before + visits.total

        lax.fori_loop(0, self.elements, of_element, jnp.int32(0))

    def compute(self, wg: jax.Array) -> None:
        """What a warpgroup that computes does: the gradient of its rows."""
        plgpu.set_max_registers(REGISTERS[0], action="increase")

        def of_element(n: jax.Array, state: Any) -> Any:
            total, before = state
            b, h = self.element(n)
            visits = self.lists.visits(self.listed, b, h, self.line)
            resident = self.staging.read_resident(self.machine, self.operands, self.staged, b, h, wg, 0)
            for masked, begin, end in visits.kinds():
                tile = functools.partial(self.tile, wg, visits, before, resident, masked)
                total = lax.fori_loop(begin, end, tile, total)
            return total, before + visits.total

        state = self.machine.zeros(self.sizes.height, self.sizes.columns), jnp.int32(0)
        total, _ = lax.fori_loop(0, self.elements, of_element, state)
        self.write(wg, total)

    def arrived(self, n: jax.Array) -> jax.Array:
        """The slot of the n-th tile, once it is there."""
        slot = lax.rem(n, jnp.int32(self.sizes.steps))
        plgpu.barrier_wait(self.there.at[slot])
        return slot

    def leave(self, slot: jax.Array) -> None:
        """What is there is not needed any more."""
        plgpu.barrier_arrive(self.free.at[slot])

    def tile(
        self,
        wg: Index,
        visits: LineVisits,
        before: Index,
        resident: Sequence[Any],
        masked: bool,
        n: jax.Array,
        total: jax.Array,
    ) -> jax.Array:
        """A tile of scores adds its share."""
        machine, (i, j) = self.machine, self.corner(visits, n)
        slot = self.arrived(before + n)
        place = slot * self.computing + wg

        def given(columns: slice) -> tuple[Any, ...]:
            positions = self.positions(i + wg * self.sizes.height, j + columns.start, columns.stop - columns.start)
            of_rows = [Row(machine.load(self.row_sm.at[n, place], "row")) for n in range(len(self.of_rows))]
            of_queries = OfQueries(*of_rows)
            return *positions, of_queries, self.parts(wg, slot, resident, columns, (i, j))

        gradient = lambda *x: self.of_tile(*x, masked=masked)[2][0]
        add = lambda columns, piece: total[:, columns] + piece
        total = self.evaluate(gradient, self.products(wg, place, slot), given, add)
        self.leave(slot)
        return total

    def write(self, wg: Index, total: jax.Array) -> None:
        """Writes what the rows have come to."""
        (self.write_pairs if self.layout.along == "ts" else self.write_diagonals)(wg, total)

    def write_pairs(self, wg: Index, total: jax.Array) -> None:
        """Writes the rectangle, by way of where the operand's own stood."""
        (n,), sizes = self.learned, self.sizes
        i, j = self.corner(LineVisits(0, 0, lambda n: n, (True, True)), jnp.int32(0))
        here = self.staged[n].at[0, pl.ds(wg * sizes.height, sizes.height)]
        at = (*self.layout.entry(self.b, self.h), pl.ds(i + wg * sizes.height, sizes.height), pl.ds(j, sizes.columns))
        self.send(total.astype(self.layout.dtype), here, at)

    def write_diagonals(self, wg: Index, total: jax.Array) -> None:
        """Writes the sums of a warpgroup's diagonals, the first of which lies one below its lowest corner."""
        machine, (height, columns) = self.machine, total.shape
        machine.write_in_order(self.tile_sm.at[wg], total)
        diagonal = machine.count_rows(_diagonals(self.sizes)) - height

        def of_row(row: jax.Array, sums: jax.Array) -> jax.Array:
            at = diagonal + row
            inside = jnp.clip(at, 0, columns - 1)
            number = machine.take(self.tile_sm.at[wg], inside + row * columns, "row")
            return sums + jnp.where(at == inside, number, 0.0)

        sums = lax.fori_loop(0, height, of_row, machine.zeros(_diagonals(self.sizes)))
        self.send(sums, self.sum_sm.at[wg] if self.copies else None, (self.b, self.h, self.line, wg))

    def send(self, x: jax.Array, staged: Any, at: tuple[Any, ...]) -> None:
        """Writes a part of the gradient, by way of shared memory."""
        staged[...] = x
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(staged, self.gradient.at[at])
        plgpu.wait_smem_to_gmem(0)


def _diagonals(sizes: TileSizes) -> int:
    """Places for the diagonals of a warpgroup's tile and the one below them: a multiple of its rows, as vectors lie."""
    return -(-(sizes.height + sizes.columns) // sizes.height) * sizes.height


def run(
    kind: type[Pairs],
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    dout: jax.Array,
    of_rows: Sequence[jax.Array],
    operands: Sequence[jax.Array],
    layouts: tuple[OperandLayout, ...],
    number: int,
    functions: TileFunctions,
    lists: LineLists,
    listed: Sequence[jax.Array],
    sizes: TileSizes,
    *,
    interpret: plgpu.InterpretGPUParams | None = None,
) -> jax.Array:
    """The gradient of the operand of that `number`, in the shape and dtype in which it is laid out.

    It has both axes, and the lines of `lists` are the tiles of scores, one of each; or it lies along diagonals, and
    lines are the diagonals of tiles, from the lowest on, whose tiles are counted by their queries.  The rest is as in
    `backward_queries`.
    """
    (b, t, h, e), (_, s, g, d) = dout.shape, k.shape
    layout, like = layouts[number], operands[number]
    batches = tuple(x.shape[0] for x in (q, k, v))
    queries, keys = pl.cdiv(t, sizes.rows), pl.cdiv(s, sizes.columns)
    of_pairs, across, computing = layout.along == "ts", _diagonals(sizes), kind.warpgroups(sizes)
    lines = queries * keys if of_pairs else (queries - 1) * (sizes.rows // sizes.columns) + keys
    staging = Staging(layouts, "t", sizes, Lengths(t, s).padded["t"], moving=True)
    stretch = kind.stretch(sizes)
    barriers = functools.partial(kind.barrier, num_barriers=sizes.steps)
    gradient = launch(
        kind,
        "jattn_backward_pairs",
        {"h": layout.heads, "line": lines, "b": layout.batch},
        computing=computing,
        out_type=jax.ShapeDtypeStruct(like.shape, like.dtype)
        if of_pairs
        else jax.ShapeDtypeStruct((layout.batch, layout.heads, lines, computing, across), jnp.float32),
        scratch_types=[
            tiles_in(computing * sizes.steps, sizes.height, d, q.dtype, stretch),
            tiles_in(computing * sizes.steps, sizes.height, e, q.dtype, stretch),
            tiles_in(sizes.steps, sizes.columns, d, q.dtype, stretch),
            tiles_in(sizes.steps, sizes.columns, e, q.dtype, stretch),
            plgpu.SMEM((len(of_rows), computing * sizes.steps, sizes.height), jnp.float32),
            None if of_pairs else plgpu.SMEM((computing, sizes.height, sizes.columns), jnp.float32),
            None if of_pairs or not kind.copies else plgpu.SMEM((computing, across), jnp.float32),
            barriers(num_arrivals=2 + computing * (2 + len(of_rows)) + staging.passing),
            barriers(num_arrivals=computing),
            kind.scratch(d, e, q.dtype, sizes, interpret is not None),
            *staging.scratch(),
        ],
        group=h // g,
        heads=h,
        elements=(b // layout.batch) * (h // layout.heads),
        batches=batches,
        lists=lists,
        learned=(number,),
        functions=functions,
        staging=staging,
        sizes=sizes,
        lengths=(t, s),
        interpret=interpret,
    )(*map(kind.filled_up, (q, k, v, dout)), *of_rows, *listed, *operands)
    return gradient if of_pairs else _joined(gradient, sizes, staging.padded - queries * sizes.rows, like.shape[-1])


def _joined(sums: jax.Array, sizes: TileSizes, begin: int, length: int) -> jax.Array:
    """The sums of diagonals `[batch, heads, lines, warpgroups, n]`, of which neighbours share some, as one strip: the
    first of them is number `begin` of `length`."""
    *shape, lines, computing, _ = sums.shape
    step = sizes.columns
    parts = sizes.height // step + 1  # of a warpgroup's diagonals, of a line's distance each
    sums, strip = sums[..., : parts * step].reshape(*shape, lines, computing, parts, step), 0
    units = lines + computing * parts
    for wg in range(computing):
        for n in range(parts):
            before = n + (computing - 1 - wg) * (sizes.height // step)
            more = (before, units - lines - before)
            strip = strip + jnp.pad(sums[..., wg, n, :], (*((0, 0),) * len(shape), more, (0, 0)))
    strip = jnp.asarray(strip).reshape(*shape, -1)
    return jnp.pad(strip, (*((0, 0),) * len(shape), (begin, max(0, length - begin - strip.shape[-1]))))[..., :length]
