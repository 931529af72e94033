"""Backward on Ampere and Ada, along queries: a warpgroup has a tile of 64 queries, and their gradient in registers."""

# The type checker sees jax 0.10, and Mosaic is that of 0.11 and later.
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportArgumentType=false

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from jattn_kernels.gpu.ampere.block import Alone, Stream
from jattn_kernels.gpu.backward_queries import Queries, run
from jattn_kernels.gpu.block import entry
from jattn_kernels.gpu.gradients import OfQueries
from jattn_kernels.gpu.lowering import Row
from jattn_kernels.tiles.place import Index


class _Queries(Alone, Queries):
    """A query tile of one head."""

    def bring(self, n: Index, slot: Index) -> None:
        """The n-th tile of keys and values, and what the operands have there."""
        first, g = self.visits.tile(n) * self.sizes.columns, lax.div(self.h, jnp.int32(self.group))
        for ref, to, batch in ((self.k, self.k_sm, self.batches[1]), (self.v, self.v_sm, self.batches[2])):
            self.machine.bring(ref, (entry(self.b, batch), pl.ds(first, self.sizes.columns), g), to.at[slot])
        places = self.first, first
        self.staging.copy_passing(self.operands, self.staged, self.b, self.h, slot, places, self.machine.bring)

    def compute(self, wg: Index) -> None:
        machine, height, rows = self.machine, self.sizes.height, pl.ds(self.first, self.sizes.height)
        machine.bring(self.q, (entry(self.b, self.batches[0]), rows, self.h), self.q_sm.at[0])
        machine.bring(self.dout, (self.b, rows, self.h), self.dout_sm.at[0])
        machine.commit()
        self.coming = Stream(machine, self.sizes.steps, self.visits.total, self.bring)
        self.coming.begin()
        of_rows = [Row(machine.load(ref.at[self.b, self.h, rows], "row")) for ref in self.of_rows]
        of_queries = OfQueries(*of_rows)
        resident = self.staging.read_resident(machine, self.operands, self.staged, self.b, self.h, 0, self.first)
        state = machine.zeros(height, self.q_sm.shape[-1]), [machine.zeros(height) for _ in self.learned]
        for masked, begin, end in self.visits.kinds():
            tile = functools.partial(self.tile, wg, self.first, of_queries, resident, masked)
            state = lax.fori_loop(begin, end, tile, state)
        dq, sums = state
        machine.wait(0)  # the queries, if there was no tile: their place is written
        dq = (dq * self.factor()).astype(self.dq.dtype)
        machine.write(dq, self.q_sm.at[0], self.dq, (self.b, rows, self.h))
        for x, ref in zip(sums, self.sums, strict=True):
            machine.write_rows(x, ref.at[self.b, self.h, rows])

    def products(self, wg: Index, slot: jax.Array) -> tuple[jax.Array, jax.Array]:
        del wg
        product = self.machine.product(self.q_sm.at[0], self.k_sm.at[slot])
        return product, self.machine.product(self.dout_sm.at[0], self.v_sm.at[slot])

    def add(self, wg: Index, slot: jax.Array, dq: jax.Array, ds: jax.Array) -> jax.Array:
        del wg
        return self.machine.accumulate(dq, ds.astype(self.k_sm.dtype), self.k_sm.at[slot])


backward_queries = functools.partial(run, _Queries)
"""`jattn_kernels.gpu.backward_queries.run` on Ampere."""
