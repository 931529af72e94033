"""Forward on Ampere and Ada: a warpgroup has a tile of 64 queries, and its sums in registers."""

# The type checker sees jax 0.10, and Mosaic is that of 0.11 and later.
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportArgumentType=false

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from jattn_kernels.gpu.ampere.block import Alone, Stream
from jattn_kernels.gpu.block import entry
from jattn_kernels.gpu.forward import Forward, run
from jattn_kernels.tiles.place import Index

_HELD = 128  # so many numbers of a query stay in registers, beside the sums of as many


class _Forward(Alone, Forward):
    """A query tile of one head."""

    query: Any  # jax.Ref | jax.Array: the left operand of products

    def bring(self, n: Index, slot: Index) -> None:
        """The n-th tile of keys and values, and what the operands have there."""
        tile, g = self.visits.tile(n), lax.div(self.h, jnp.int32(self.group))
        first = tile * self.sizes.columns
        for at, rows in self.stretches(first, self.batches[1]):
            self.machine.bring(self.k, (*at, g), self.k_sm.at[(slot, *rows)])
        self.values(tile, g, lambda ref, at, rows: self.machine.bring(ref, at, self.v_sm.at[(slot, *rows)]))
        places = self.first, first
        self.staging.copy_passing(self.operands, self.staged, self.b, self.h, slot, places, self.machine.bring)

    def compute(self, wg: Index) -> None:
        machine, height, rows = self.machine, self.sizes.height, pl.ds(self.first, self.sizes.height)
        machine.bring(self.q, (entry(self.b, self.batches[0]), rows, self.h), self.q_sm.at[0])
        machine.commit()
        self.coming = Stream(machine, self.sizes.steps, self.visits.total, self.bring)
        self.coming.begin()
        machine.wait(self.sizes.steps - 1)
        self.query = self.q_sm.at[0] if self.q_sm.shape[-1] > _HELD else machine.hold(self.q_sm.at[0])
        resident = self.staging.read_resident(machine, self.operands, self.staged, self.b, self.h, 0, self.first)
        out = machine.zeros(height, self.v_sm.shape[-1])
        out, top, total = self.softmax(wg, self.first, resident, out)
        unseen = total == 0
        out = self.shrink(wg, out, jnp.where(unseen, 0.0, 1 / total))
        machine.write(out.astype(self.out.dtype), self.out_sm.at[0], self.out, (self.result, rows, self.h))
        for x, ref in zip(self.logarithms(top, total), self.of_rows, strict=True):
            machine.write_rows(x, ref.at[self.result, self.h, rows])

    def product(self, wg: Index, slot: jax.Array) -> jax.Array:
        del wg
        return self.machine.product(self.query, self.k_sm.at[slot])

    def shrink(self, wg: Index, out: jax.Array, factor: jax.Array) -> jax.Array:
        del wg
        return out * self.machine.broadcast(factor, 0, out.shape)

    def add(self, wg: Index, n: jax.Array, slot: jax.Array, out: jax.Array, weights: jax.Array) -> jax.Array:
        del wg, n
        return self.machine.accumulate(out, weights, self.v_sm.at[slot])


forward = functools.partial(run, _Forward)
"""`jattn_kernels.gpu.forward.run` on Ampere."""
