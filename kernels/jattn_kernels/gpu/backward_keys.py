"""Backward along keys, on every machine: gradients of keys and values, and of operands along keys.

A block is a tile of one key head, keys along its rows; the query tiles that see it, of every query head of its group,
go by.  Two warpgroups have half of the rows each, or share them.
"""

# The type checker sees jax 0.10, and Mosaic is that of 0.11 and later.
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportArgumentType=false

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
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
from jattn_kernels.gpu.lowering import Column
from jattn_kernels.gpu.sizes import Lengths, TileSizes, apart
from jattn_kernels.tiles.functions import TileFunctions
from jattn_kernels.tiles.place import Index


class Keys(GradientBlock):
    """A tile of one key head; the products are the machine's, and how warpgroups share the work."""

    sharers = 1
    """How many warpgroups each have a share of the operands' gradients of a row."""

    def __init__(
        self,
        refs: Sequence[Any],
        *,
        group: int,
        batch: int,
        batches: tuple[int, ...],
        lists: LineLists,
        learned: tuple[int, ...],
        **static: Unpack[ThreadBlockOptions],
    ):
        super().__init__(**static)
        self.group, self.batch, self.batches, self.learned, self.lists = group, batch, batches, learned, lists
        (self.q, self.k, self.v, self.dout, *self.of_rows), rest = refs[:6], refs[6:]
        self.listed, rest = rest[: lists.arrays], rest[lists.arrays :]
        self.operands, rest = rest[: len(self.staging.layouts)], rest[len(self.staging.layouts) :]
        self.dk, self.dv, *self.sums = rest[: 2 + len(learned)]
        self.k_sm, self.v_sm, self.q_sm, self.dout_sm, self.row_sm, self.sum_sm, *rest = rest[2 + len(learned) :]
        self.k_there, self.operands_there, self.there, self.free, self.written, self.own, *self.staged = rest
        self.b, self.g, self.line = lax.axis_index("b"), lax.axis_index("g"), lax.axis_index("k")
        self.first = self.line * self.sizes.rows
        self.shared = self.sizes.rows == self.sizes.height

    # What the machine does its own way

    @classmethod
    def splits(cls, d: int, e: int, sizes: TileSizes) -> bool:
        """Whether dv and dk have blocks of their own, 0 and 1 along the grid's axis `of`."""
        del d, e, sizes
        return False

    def divide(self, wg: jax.Array) -> None:
        """Calls `gradients` with what is the warpgroup's."""
        raise NotImplementedError

    def begin(self, wg: jax.Array, of_keys: bool, of_values: bool) -> tuple[Any, Any]:
        """dk and dv that nothing was added to yet, those that are active: what `add` takes and `write` writes."""
        raise NotImplementedError

    def products(self, wg: jax.Array, place: Index, slot: jax.Array, of_keys: bool) -> tuple[Any, Any]:
        """The products of keys and queries in a slot, and of values and cotangents, which dk alone needs."""
        raise NotImplementedError

    def add(
        self, wg: jax.Array, slot: jax.Array, step: jax.Array, dk: Any, dv: Any, ds: Any, weight: Any
    ) -> tuple[Any, Any]:
        """Both and what gradients of scores take of the queries in a slot, and weights of the cotangents.

        Tiles are as `keep` leaves them, None where what they are for is not active; `step`: the tile's number, over
        all heads.
        """
        raise NotImplementedError

    def loop(
        self,
        wg: jax.Array,
        before: jax.Array,
        begin: Index,
        end: Index,
        tile: Callable[[jax.Array, Any], Any],
        state: Any,
    ) -> Any:
        """The warpgroup's tiles of begin .. end - 1, of a head with `before` tiles before it."""
        del wg, before
        return lax.fori_loop(begin, end, tile, state)

    def write(self, wg: jax.Array, place: Index, rows: pl.Slice, active: tuple[bool, bool], dk: Any, dv: Any) -> None:
        """Writes what rows have come to, over the keys and values, once nobody reads those any more."""
        raise NotImplementedError

    # What all do alike

    def head(self, n: jax.Array) -> jax.Array:
        """The n-th query head of the group."""
        return self.g * self.group + n

    def visits(self, h: jax.Array) -> LineVisits:
        return self.lists.visits(self.listed, self.b, h, self.line)

    def copy(self) -> None:
        """What the warpgroup that copies does."""
        plgpu.set_max_registers(REGISTERS[1], action="decrease")
        steps, columns = self.sizes.steps, self.sizes.columns

        def of_head(n: jax.Array, before: jax.Array) -> jax.Array:
            h = self.head(n)
            visits = self.visits(h)

            def one(n: jax.Array, _: None) -> None:
                step = before + n
                slot, first = lax.rem(step, jnp.int32(steps)), visits.tile(n) * columns
                pl.when(step >= steps)(lambda: plgpu.barrier_wait(self.free.at[slot]))
                there, queries = self.there.at[slot], pl.ds(first, columns)
                at = entry(self.b, self.batches[0]), queries, h
                plgpu.copy_gmem_to_smem(self.q.at[at], self.q_sm.at[slot], there)
                plgpu.copy_gmem_to_smem(self.dout.at[self.b, queries, h], self.dout_sm.at[slot], there)
                for row, ref in enumerate(self.of_rows):
                    plgpu.copy_gmem_to_smem(
                        ref.at[self.b, h, queries], self.row_sm.at[row, slot, pl.ds(0, columns)], there
                    )
                places, copy = (self.first, first), self.copier(there)
                self.staging.copy_passing(self.operands, self.staged, self.b, h, slot, places, copy)

            lax.fori_loop(0, visits.total, one, None)
            return before + visits.total

        lax.fori_loop(0, self.group, of_head, jnp.int32(0))

    def compute(self, wg: jax.Array) -> None:
        """What a warpgroup that computes does: the gradients of its rows."""
        plgpu.set_max_registers(REGISTERS[0], action="increase")
        self.divide(wg)

    def gradients(self, wg: jax.Array, of_keys: bool = True, of_values: bool = True) -> None:
        """Computes the gradients of the keys, with which those of operands go, of the values, or of both."""
        machine, height = self.machine, self.sizes.height
        place = 0 if self.shared else wg
        first = self.first + place * height
        rows = pl.ds(first, height)
        self.bring_rows(wg, place, rows)
        state = *self.begin(wg, of_keys, of_values), jnp.int32(0)

        def of_head(n: jax.Array, state: Any) -> Any:
            *state, before = state
            h = self.head(n)
            visits = self.visits(h)
            if self.staging.resident:
                pl.when((n == 0) | self.staging.of_heads)(lambda: self.bring_operands(wg, h, first))
            resident = self.staging.read_resident(machine, self.operands, self.staged, self.b, h, wg, first)
            state = *state, [machine.zeros(height) for _ in self.learned] if of_keys else []
            for masked, begin, end in visits.kinds():
                active = of_keys, of_values
                tile = functools.partial(self.tile, wg, place, first, visits, before, resident, masked, active)
                state = self.loop(wg, before, begin, end, tile, state)
            *state, sums = state
            self.write_sums(wg, place, h, rows, sums)
            return *state, before + visits.total

        dk, dv, _ = lax.fori_loop(0, self.group, of_head, state)
        self.write(wg, place, rows, (of_keys, of_values), dk, dv)

    def bring_rows(self, wg: jax.Array, place: Index, rows: pl.Slice) -> None:
        """Keys and values of the rows; of two warpgroups that share them the first brings them for both."""
        there = self.k_there.at[place]

        def bring() -> None:
            for ref, to, batch in ((self.k, self.k_sm, self.batches[1]), (self.v, self.v_sm, self.batches[2])):
                plgpu.copy_gmem_to_smem(ref.at[entry(self.b, batch), rows, self.g], to.at[place], there)

        if self.shared:
            pl.when(wg == 0)(bring)
        else:
            bring()
        plgpu.barrier_wait(there)

    def bring_operands(self, wg: jax.Array, h: jax.Array, first: jax.Array) -> None:
        """What the rows have of a head's operands."""
        there = self.operands_there.at[wg]
        self.staging.copy_resident(self.operands, self.staged, self.b, h, wg, first, self.copier(there))
        plgpu.barrier_wait(there)

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
        wg: jax.Array,
        place: Index,
        row: jax.Array,
        visits: LineVisits,
        before: jax.Array,
        resident: Sequence[Any],
        masked: bool,
        active: tuple[bool, bool],
        n: jax.Array,
        state: Any,
    ) -> Any:
        """A tile of queries adds its share."""
        (dk, dv, sums), (of_keys, of_values) = state, active
        machine, step = self.machine, before + n
        slot = self.arrived(step)
        column = visits.tile(n) * self.sizes.columns

        def given(columns: slice) -> tuple[Any, ...]:
            width = columns.stop - columns.start
            places = self.positions(row, column + columns.start, width)
            read = lambda n: Column(machine.load(self.row_sm.at[n, slot, pl.ds(columns.start, width)], "column"))
            of_rows = [read(n) for n in range(len(self.of_rows))]
            of_queries = OfQueries(*of_rows)
            return *places, of_queries, self.as_rows(self.parts(place, slot, resident, columns, (self.first, column)))

        def gradients(*x: Any) -> Any:
            weight, ds, of_some = self.of_tile(*x, masked=masked)
            return weight if of_values else None, *((ds, of_some) if of_keys else (None, []))

        def keep(columns: slice, piece: Any) -> Any:
            weight, ds, of_some = piece
            return *self.keep(wg, columns, weight, ds), of_some

        weight, ds, of_some = self.evaluate(gradients, self.products(wg, place, slot, of_keys), given, keep)
        dk, dv = self.add(wg, slot, step, dk, dv, ds, weight)
        sums = [x + y.x for x, y in zip(sums, of_some, strict=True)]
        self.leave(slot)
        return dk, dv, sums

    def write_sums(self, wg: jax.Array, place: Index, h: jax.Array, rows: pl.Slice, sums: Sequence[jax.Array]) -> None:
        """What one head has added to the operands' gradients, or a warpgroup's share of it."""
        if not sums:
            return
        place, b = (place, self.b) if self.sharers == 1 else (wg, wg * self.batch + self.b)
        for n, x in enumerate(sums):
            self.sum_sm.at[n, place][...] = x
        plgpu.commit_smem()
        for n, ref in enumerate(self.sums):
            plgpu.copy_smem_to_gmem(self.sum_sm.at[n, place], ref.at[b, h, rows])
        plgpu.wait_smem_to_gmem(0)


def run(
    kind: type[Keys],
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    dout: jax.Array,
    of_rows: Sequence[jax.Array],
    operands: Sequence[jax.Array],
    layouts: tuple[OperandLayout, ...],
    learned: tuple[int, ...],
    functions: TileFunctions,
    lists: LineLists,
    listed: Sequence[jax.Array],
    sizes: TileSizes,
    *,
    interpret: plgpu.InterpretGPUParams | None = None,
) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
    """dk `[b, s, g, d]`, dv `[b, s, g, e]`, and of the operands along keys whose numbers are in `learned` what each
    head adds to their gradient, float32 `[b, h, s]`.

    The lines of `lists` are key tiles, its tiles those of queries; arrays `[.., t, s]` are given as `[.., s, t]`.  The
    rest is as in `backward_queries`.
    """
    (b, t, h, e), (_, s, g, d) = dout.shape, k.shape
    batches = tuple(x.shape[0] for x in (q, k, v))
    tiles, height, blocks = pl.cdiv(s, sizes.rows), sizes.height, sizes.rows // sizes.height
    staging = Staging(layouts, "s", sizes, Lengths(t, s).padded["t"], direct=not kind.copies)
    stretch = kind.stretch(sizes)
    barriers = functools.partial(kind.barrier, num_barriers=sizes.steps)
    sums = jax.ShapeDtypeStruct((kind.sharers * b, h, tiles * sizes.rows), jnp.float32)
    dk, dv, *sums = launch(
        kind,
        "jattn_backward_keys",
        {"g": g, **({"of": 2} if kind.splits(d, e, sizes) else {}), "k": tiles, "b": b},
        out_type=[
            jax.ShapeDtypeStruct((b, kind.length(s), g, d), k.dtype),
            jax.ShapeDtypeStruct((b, kind.length(s), g, e), v.dtype),
            *[sums] * len(learned),
        ],
        scratch_types=[
            tiles_in(blocks, height, d, q.dtype, stretch),
            tiles_in(blocks, height, e, q.dtype, stretch),
            tiles_in(sizes.steps, sizes.columns, d, q.dtype, stretch),
            tiles_in(sizes.steps, sizes.columns, e, q.dtype, stretch),
            plgpu.SMEM((len(of_rows), sizes.steps, apart(sizes.columns, jnp.dtype(jnp.float32))), jnp.float32),
            plgpu.SMEM((len(learned), blocks * kind.sharers, height), jnp.float32) if learned and kind.copies else None,
            kind.barrier(num_arrivals=2, num_barriers=blocks),
            kind.barrier(num_arrivals=staging.resident, num_barriers=2) if staging.resident else None,
            barriers(num_arrivals=2 + len(of_rows) + staging.passing),
            barriers(num_arrivals=2 // kind.sharers),
            kind.barrier(num_arrivals=2, orders_tensor_core=kind.sharers > 1),
            kind.scratch(d, e, q.dtype, sizes, interpret is not None),
            *staging.scratch(),
        ],
        group=h // g,
        batch=b,
        batches=batches,
        lists=lists,
        learned=learned,
        functions=functions,
        staging=staging,
        sizes=sizes,
        lengths=(t, s),
        interpret=interpret,
    )(*map(kind.filled_up, (q, k, v, dout)), *of_rows, *listed, *operands)
    return dk[:, :s], dv[:, :s], [x.reshape(-1, b, *x.shape[1:])[..., :s].sum(0) for x in sums]
