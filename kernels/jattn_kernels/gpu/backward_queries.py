"""Backward along queries, on every machine: gradients of the queries, and of operands along them or without position.

A block is a query tile of one head, as in the forward pass; keys and values go by.
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
from jattn_kernels.gpu.lists import LineLists
from jattn_kernels.gpu.lowering import Row
from jattn_kernels.gpu.sizes import Lengths, TileSizes
from jattn_kernels.tiles.functions import TileFunctions


class Queries(GradientBlock):
    """A query tile of one head; the products are the machine's."""

    def __init__(
        self,
        refs: Sequence[Any],
        *,
        group: int,
        tiles: int,
        batches: tuple[int, ...],
        lists: LineLists,
        learned: tuple[int, ...],
        **static: Unpack[ThreadBlockOptions],
    ):
        super().__init__(**static)
        self.group, self.batches, self.learned = group, batches, learned
        (self.q, self.k, self.v, self.dout, *self.of_rows), rest = refs[:6], refs[6:]
        listed, rest = rest[: lists.arrays], rest[lists.arrays :]
        self.operands, rest = rest[: len(self.staging.layouts)], rest[len(self.staging.layouts) :]
        self.dq, *self.sums = rest[: 1 + len(learned)]
        self.q_sm, self.dout_sm, self.k_sm, self.v_sm, self.row_sm, self.sum_sm, *rest = rest[1 + len(learned) :]
        self.q_there, self.there, self.free, self.own, *self.staged = rest
        self.b, self.h = lax.axis_index("b"), lax.axis_index("h")
        line = tiles - 1 - lax.axis_index("q")  # the longest first, as in the forward pass
        self.first = line * self.sizes.rows
        self.visits = lists.visits(listed, self.b, self.h, line)

    # What the machine does its own way

    def begin(self, wg: jax.Array) -> Any:
        """The gradient that nothing was added to yet: what `add` takes and `write` writes."""
        raise NotImplementedError

    def products(self, wg: jax.Array, slot: jax.Array) -> tuple[Any, Any]:
        """The products of the warpgroup's queries and the keys in a slot, and of their cotangents and the values."""
        raise NotImplementedError

    def add(self, wg: jax.Array, slot: jax.Array, dq: Any, ds: Any) -> Any:
        """The gradient and what the scores' gradients, as `keep` leaves them, take of the keys in a slot."""
        raise NotImplementedError

    def write(self, wg: jax.Array, dq: Any) -> None:
        """The gradient times `factor()` to shared memory, over the queries."""
        raise NotImplementedError

    # What all do alike

    def copy(self) -> None:
        """What the warpgroup that copies does."""
        plgpu.set_max_registers(REGISTERS[1], action="decrease")
        g = lax.div(self.h, jnp.int32(self.group))

        def bring(n: jax.Array, slot: jax.Array) -> None:
            first, there = self.visits.tile(n) * self.sizes.columns, self.there.at[slot]
            for ref, to, batch in ((self.k, self.k_sm, self.batches[1]), (self.v, self.v_sm, self.batches[2])):
                at = entry(self.b, batch), pl.ds(first, self.sizes.columns), g
                plgpu.copy_gmem_to_smem(ref.at[at], to.at[slot], there)
            places, copy = (self.first, first), self.copier(there)
            self.staging.copy_passing(self.operands, self.staged, self.b, self.h, slot, places, copy)

        self.stream(self.visits.total, (self.free,), (bring,))

    def compute(self, wg: jax.Array) -> None:
        """What a warpgroup that computes does: the gradients of its rows."""
        plgpu.set_max_registers(REGISTERS[0], action="increase")
        machine, height = self.machine, self.sizes.height
        first, arrived = self.first + wg * height, self.q_there.at[wg]
        rows = pl.ds(first, height)
        plgpu.copy_gmem_to_smem(self.q.at[entry(self.b, self.batches[0]), rows, self.h], self.q_sm.at[wg], arrived)
        plgpu.copy_gmem_to_smem(self.dout.at[self.b, rows, self.h], self.dout_sm.at[wg], arrived)
        for n, ref in enumerate(self.of_rows):
            plgpu.copy_gmem_to_smem(ref.at[self.b, self.h, rows], self.row_sm.at[n, wg], arrived)
        self.staging.copy_resident(self.operands, self.staged, self.b, self.h, wg, first, self.copier(arrived))
        plgpu.barrier_wait(arrived)
        of_rows = [Row(machine.load(self.row_sm.at[n, wg], "row")) for n in range(len(self.of_rows))]
        of_queries = OfQueries(*of_rows)
        resident = self.staging.read_resident(machine, self.operands, self.staged, self.b, self.h, wg, first)
        state = self.begin(wg), [machine.zeros(height) for _ in self.learned]
        for masked, begin, end in self.visits.kinds():
            tile = functools.partial(self.tile, wg, first, of_queries, resident, masked)
            state = lax.fori_loop(begin, end, tile, state)
        self.finish(wg, rows, *state)

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
        row: jax.Array,
        of_queries: OfQueries,
        resident: Sequence[Any],
        masked: bool,
        n: jax.Array,
        state: Any,
    ) -> Any:
        """A tile of keys adds its share."""
        dq, sums = state
        column = self.visits.tile(n) * self.sizes.columns
        slot = self.arrived(n)

        def given(columns: slice) -> tuple[Any, ...]:
            places = self.positions(row, column + columns.start, columns.stop - columns.start)
            return *places, of_queries, self.as_rows(self.parts(wg, slot, resident, columns, (self.first, column)))

        def gradients(*x: Any) -> Any:
            _, ds, of_some = self.of_tile(*x, masked=masked)
            return ds, of_some

        def keep(columns: slice, piece: Any) -> Any:
            ds, of_some = piece
            return self.keep(wg, columns, None, ds)[1], of_some

        ds, of_some = self.evaluate(gradients, self.products(wg, slot), given, keep)
        dq = self.add(wg, slot, dq, ds)
        self.leave(slot)
        return dq, [x + y.x for x, y in zip(sums, of_some, strict=True)]

    def finish(self, wg: jax.Array, rows: pl.Slice, dq: Any, sums: Sequence[jax.Array]) -> None:
        """Writes what rows have come to."""
        self.write(wg, dq)
        for n, x in enumerate(sums):
            self.sum_sm.at[n, wg][...] = x
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(self.q_sm.at[wg], self.dq.at[self.b, rows, self.h])
        for n, ref in enumerate(self.sums):
            plgpu.copy_smem_to_gmem(self.sum_sm.at[n, wg], ref.at[self.b, self.h, rows])
        plgpu.wait_smem_to_gmem(0)


def run(
    kind: type[Queries],
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
) -> tuple[jax.Array, list[jax.Array]]:
    """dq `[b, t, h, d]`, and of the operands whose numbers are in `learned`, along queries or without
    position, what each query adds to their gradient, float32 `[b, h, t]`.

    `of_rows`: the fields of `OfQueries`, `[b, h, t]` stretched to whole tiles; the rest as in the forward pass.
    """
    (b, t, h, e), (_, s, g, d) = dout.shape, k.shape
    computing = kind.warpgroups(sizes)
    batches = tuple(x.shape[0] for x in (q, k, v))
    tiles = pl.cdiv(t, sizes.rows)
    staging = Staging(layouts, "t", sizes, Lengths(t, s).padded["t"], direct=not kind.copies)
    stretch = kind.stretch(sizes)
    barriers = functools.partial(kind.barrier, num_barriers=sizes.steps)
    sums = jax.ShapeDtypeStruct((b, h, tiles * sizes.rows), jnp.float32)
    dq, *sums = launch(
        kind,
        "jattn_backward_queries",
        {"h": h, "q": tiles, "b": b},
        computing=computing,
        out_type=[jax.ShapeDtypeStruct((b, kind.length(t), h, d), q.dtype), *[sums] * len(learned)],
        scratch_types=[
            tiles_in(computing, sizes.height, d, q.dtype, stretch),
            tiles_in(computing, sizes.height, e, q.dtype, stretch),
            tiles_in(sizes.steps, sizes.columns, d, q.dtype, stretch),
            tiles_in(sizes.steps, sizes.columns, e, q.dtype, stretch),
            plgpu.SMEM((len(of_rows), computing, sizes.height), jnp.float32) if kind.copies else None,
            plgpu.SMEM((len(learned), computing, sizes.height), jnp.float32) if learned and kind.copies else None,
            kind.barrier(num_arrivals=2 + len(of_rows) + staging.resident, num_barriers=computing),
            barriers(num_arrivals=2 + staging.passing),
            barriers(num_arrivals=computing),
            kind.scratch(d, e, q.dtype, sizes, interpret is not None),
            *staging.scratch(),
        ],
        group=h // g,
        tiles=tiles,
        batches=batches,
        lists=lists,
        learned=learned,
        functions=functions,
        staging=staging,
        sizes=sizes,
        lengths=(t, s),
        interpret=interpret,
    )(*map(kind.filled_up, (q, k, v, dout)), *of_rows, *listed, *operands)
    return dq[:, :t], [x[:, :, :t] for x in sums]
