"""Backward on Ampere and Ada, along keys: a warpgroup has a tile of 64 keys, and both their gradients in registers.

Where heads are so wide that registers do not hold both, one block has dv and another dk.
"""

# The type checker sees jax 0.10, and Mosaic is that of 0.11 and later.
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportArgumentType=false

from __future__ import annotations

import functools
from typing import Any

import jax
from jax import lax
from jax.experimental import pallas as pl

from jattn_kernels.gpu.ampere.block import Alone, Stream
from jattn_kernels.gpu.backward_keys import Keys, run
from jattn_kernels.gpu.block import entry
from jattn_kernels.gpu.sizes import TileSizes
from jattn_kernels.tiles.place import Index

_WIDEST = 128  # the sums of dk and of dv of a wider head do not both fit in registers


class _Keys(Alone, Keys):
    """A tile of one key head."""

    @classmethod
    def splits(cls, d: int, e: int, sizes: TileSizes) -> bool:
        del sizes
        return max(d, e) > _WIDEST

    def bring(self, h: jax.Array, n: Index, slot: Index) -> None:
        """The n-th tile of a head's queries, and what the operands have there."""
        machine, first = self.machine, self.visits(h).tile(n) * self.sizes.columns
        queries = pl.ds(first, self.sizes.columns)
        machine.bring(self.q, (entry(self.b, self.batches[0]), queries, h), self.q_sm.at[slot])
        machine.bring(self.dout, (self.b, queries, h), self.dout_sm.at[slot])
        for row, ref in enumerate(self.of_rows):
            machine.bring(ref, (self.b, h, queries), self.row_sm.at[row, slot, pl.ds(0, self.sizes.columns)])
        places = self.first, first
        self.staging.copy_passing(self.operands, self.staged, self.b, h, slot, places, machine.bring)

    def compute(self, wg: Index) -> None:
        if self.splits(self.k_sm.shape[-1], self.v_sm.shape[-1], self.sizes):
            of = lax.axis_index("of")
            pl.when(of == 0)(lambda: self.gradients(wg, of_keys=False))
            pl.when(of == 1)(lambda: self.gradients(wg, of_values=False))
        else:
            self.gradients(wg)

    def gradients(self, wg: Index, of_keys: bool = True, of_values: bool = True) -> None:
        machine, height, rows = self.machine, self.sizes.height, pl.ds(self.first, self.sizes.height)
        for ref, to, batch in ((self.k, self.k_sm, self.batches[1]), (self.v, self.v_sm, self.batches[2])):
            machine.bring(ref, (entry(self.b, batch), rows, self.g), to.at[0])
        machine.commit()
        zeros = lambda active, ref: machine.zeros(height, ref.shape[-1]) if active else None

        def of_head(n: jax.Array, state: Any) -> Any:
            h, active = self.head(n), (of_keys, of_values)
            visits = self.visits(h)
            machine.wait(self.sizes.steps)  # nobody needs the tiles of the last head; keys and values may still come
            self.coming = Stream(machine, self.sizes.steps, visits.total, functools.partial(self.bring, h))
            self.coming.begin()
            resident = self.staging.read_resident(machine, self.operands, self.staged, self.b, h, 0, self.first)
            state = *state, [machine.zeros(height) for _ in self.learned] if of_keys else []
            for masked, begin, end in visits.kinds():
                tile = functools.partial(self.tile, wg, 0, self.first, visits, 0, resident, masked, active)
                state = lax.fori_loop(begin, end, tile, state)
            *state, sums = state
            for x, ref in zip(sums, self.sums if of_keys else [], strict=True):
                machine.write_rows(x, ref.at[self.b, h, rows])
            return tuple(state)

        dk, dv = lax.fori_loop(0, self.group, of_head, (zeros(of_keys, self.k_sm), zeros(of_values, self.v_sm)))
        machine.wait(0)  # keys and values, if there was no tile: their places are written
        for x, factor, staged, ref in ((dk, self.factor(), self.k_sm, self.dk), (dv, 1.0, self.v_sm, self.dv)):
            if x is not None:
                x = (x if factor == 1.0 else x * factor).astype(ref.dtype)
                machine.write(x, staged.at[0], ref, (self.b, rows, self.g))

    def products(self, wg: Index, place: Index, slot: jax.Array, of_keys: bool) -> tuple[jax.Array, jax.Array]:
        del wg
        product = self.machine.product(self.k_sm.at[place], self.q_sm.at[slot])
        # Without dk the gradient of the weights is not needed, and any tile does for it.
        return product, self.machine.product(self.v_sm.at[place], self.dout_sm.at[slot]) if of_keys else product

    def add(
        self, wg: Index, slot: jax.Array, step: jax.Array, dk: Any, dv: Any, ds: Any, weight: Any
    ) -> tuple[Any, Any]:
        del wg, step
        dtype = self.q_sm.dtype
        if dv is not None:
            dv = self.machine.accumulate(dv, weight.astype(dtype), self.dout_sm.at[slot])
        if dk is not None:
            dk = self.machine.accumulate(dk, ds.astype(dtype), self.q_sm.at[slot])
        return dk, dv


backward_keys = functools.partial(run, _Keys)
"""`jattn_kernels.gpu.backward_keys.run` on Ampere."""
