"""Backward on Hopper, along keys: each of two warpgroups has half of the rows, and their sums in its registers.

Where heads are so wide that a thread's registers do not hold the sums of both gradients, the two share the rows: one
has dv, the other dk.
"""

# The type checker sees jax 0.10, and Mosaic is that of 0.11 and later.
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportArgumentType=false

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jattn_kernels.gpu.backward_keys import Keys, run
from jattn_kernels.gpu.gradients import Held
from jattn_kernels.gpu.hopper.products import of_scores
from jattn_kernels.tiles.place import Index


class _Keys(Keys):
    """A tile of one key head."""

    def divide(self, wg: jax.Array) -> None:
        if self.shared:
            pl.when(wg == 0)(lambda: self.gradients(wg, of_keys=False))
            pl.when(wg == 1)(lambda: self.gradients(wg, of_values=False))
        else:
            self.gradients(wg)

    def begin(self, wg: jax.Array, of_keys: bool, of_values: bool) -> tuple[Any, Any]:
        del wg
        zeros = lambda active, ref: self.machine.zeros(self.sizes.height, ref.shape[-1]) if active else None
        return zeros(of_keys, self.k_sm), zeros(of_values, self.v_sm)

    def products(self, wg: jax.Array, place: Index, slot: jax.Array, of_keys: bool) -> tuple[jax.Array, jax.Array]:
        del wg
        if self.sizes.piece < self.sizes.columns:
            # Where the rows lie is found for each tile anew: uniform registers do not hold that beside terms.
            (place,) = self.machine.after([jnp.int32(place)], [slot])
        product, of_values = (self.k_sm.at[place], self.q_sm.at[slot]), (self.v_sm.at[place], self.dout_sm.at[slot])
        if of_keys:
            return of_scores(self.machine, product, of_values)
        scores = self.machine.product(*product)
        return scores, scores  # without dk the gradient of the weights is not needed: any tile does for it

    def keep(self, wg: jax.Array, columns: slice, weight: jax.Array | None, ds: jax.Array | None) -> tuple[Held, Held]:
        # As soon as they are there: half as many registers hold a piece until all are.
        del wg, columns
        weight, ds = (None if x is None else x.astype(self.q_sm.dtype) for x in (weight, ds))
        return weight, ds

    def add(
        self, wg: jax.Array, slot: jax.Array, step: jax.Array, dk: Any, dv: Any, ds: Any, weight: Any
    ) -> tuple[Any, Any]:
        del wg, step
        of_keys, of_values = (dk, ds, self.q_sm.at[slot]), (dv, weight, self.dout_sm.at[slot])
        sums = iter(self.machine.accumulate_all([x for x in (of_keys, of_values) if x[0] is not None]))
        return None if dk is None else next(sums), None if dv is None else next(sums)

    def write(self, wg: jax.Array, place: Index, rows: pl.Slice, active: tuple[bool, bool], dk: Any, dv: Any) -> None:
        del active
        if self.shared:
            plgpu.barrier_arrive(self.written)
            plgpu.barrier_wait(self.written)
        of_keys = (dk, self.factor(), self.k_sm, self.dk), (dv, 1.0, self.v_sm, self.dv)
        there = [(x, factor, to, ref) for x, factor, to, ref in of_keys if x is not None]
        for x, factor, to, _ in there:
            to.at[place][...] = (x if factor == 1.0 else x * factor).astype(to.dtype)
        plgpu.commit_smem()
        for _, _, to, ref in there:
            plgpu.copy_smem_to_gmem(to.at[place], ref.at[self.b, rows, self.g])
        plgpu.wait_smem_to_gmem(0)


backward_keys = functools.partial(run, _Keys)
"""`jattn_kernels.gpu.backward_keys.run` on Hopper."""
