"""BackwardTiles on Blackwell, along keys: sums stay in tensor memory, and two warpgroups take the query tiles in turns.

Both add to the same sums, one after the other in the order of the tiles, so that every run adds up alike.  Where heads
are so wide that tensor memory does not hold the sums of both gradients, one block has dv and another dk.
"""

# The type checker sees jax 0.10, and Mosaic is that of 0.11 and later.
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportArgumentType=false

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jattn_kernels.gpu.backward_keys import Keys, run
from jattn_kernels.gpu.blackwell import tensor_memory as memory
from jattn_kernels.gpu.gradients import Held
from jattn_kernels.gpu.sizes import TileSizes
from jattn_kernels.tiles.place import Index


class _Keys(Keys):
    """A tile of one key head; `own`: the tiles of its products, both sums, and whose tile was added to them."""

    layout = plgpu.Layout.TCGEN05
    sharers = 2

    @classmethod
    def splits(cls, d: int, e: int, sizes: TileSizes) -> bool:
        # Tensor memory lacks the columns for both sums, beside two tiles of each of two warpgroups.
        return d + e + 4 * sizes.columns > memory.COLUMNS

    @classmethod
    def scratch(cls, d: int, e: int, dtype: jnp.dtype, sizes: TileSizes, simulated: bool) -> Any:
        del simulated
        split, both = cls.splits(d, e, sizes), [memory.sums(d), memory.sums(e)]
        memory.check(4 * sizes.columns + (max(d, e) if split else d + e))
        tiles = memory.BackwardTiles.scratch(2, sizes.columns, dtype)
        return {"tiles": tiles, "sums": plgpu.RefUnion(*both) if split else both, "added": memory.done()}

    def divide(self, wg: jax.Array) -> None:
        if self.splits(self.k_sm.shape[-1], self.v_sm.shape[-1], self.sizes):
            pl.when(lax.axis_index("of") == 0)(lambda: self.gradients(wg, of_values=False))
            pl.when(lax.axis_index("of") == 1)(lambda: self.gradients(wg, of_keys=False))
        else:
            self.gradients(wg)

    def begin(self, wg: jax.Array, of_keys: bool, of_values: bool) -> tuple[None, None]:
        def clear() -> None:  # the other waits for this one's first tile, or for its last
            for x, active in zip(self.own["sums"], (of_keys, of_values), strict=True):
                if active:
                    memory.clear(self.machine, x)

        pl.when(wg == 0)(clear)
        return None, None

    def loop(
        self,
        wg: jax.Array,
        before: jax.Array,
        begin: Index,
        end: Index,
        tile: Callable[[jax.Array, Any], Any],
        state: Any,
    ) -> Any:
        first = begin + lax.rem(begin + before + wg, jnp.int32(2))
        count = lax.div(end - first + 1, jnp.int32(2))
        return lax.fori_loop(0, count, lambda n, state: tile(first + 2 * n, state), state)

    def products(
        self, wg: jax.Array, place: Index, slot: jax.Array, of_keys: bool
    ) -> tuple[memory.TensorMemoryTile, memory.TensorMemoryTile]:
        operands = (self.k_sm.at[place], self.q_sm.at[slot]), (self.v_sm.at[place], self.dout_sm.at[slot])
        return self.own["tiles"].products(self.machine, wg, *operands[: 1 + of_keys])

    def keep(self, wg: jax.Array, columns: slice, weight: jax.Array | None, ds: jax.Array | None) -> tuple[Held, Held]:
        return self.own["tiles"].keep(wg, columns, weight, ds)

    def add(
        self, wg: jax.Array, slot: jax.Array, step: jax.Array, dk: None, dv: None, ds: Any, weight: Any
    ) -> tuple[None, None]:
        tiles, (of_keys, of_values), added = self.own["tiles"], self.own["sums"], self.own["added"]
        shares = []
        if weight is not None:
            shares.append((of_values, tiles.scores[1], self.dout_sm, tiles.scores_done))
        if ds is not None:
            shares.append((of_keys, tiles.weights[1], self.q_sm, tiles.weights_done))
        plgpu.commit_tmem()
        pl.when(step > 0)(lambda: plgpu.barrier_wait(added.at[1 - wg]))
        for to, x, ref, done in shares:
            there = memory.kept(x.at[wg], self.sizes.columns)
            plgpu.tcgen05_mma(to, there, ref.at[slot], done.at[wg], accumulate=True)
        for *_, done in shares:
            plgpu.barrier_wait(done.at[wg])
        plgpu.barrier_arrive(added.at[wg])
        return None, None

    def write(self, wg: jax.Array, place: Index, rows: pl.Slice, active: tuple[bool, bool], dk: None, dv: None) -> None:
        plgpu.barrier_arrive(self.written)
        plgpu.barrier_wait(self.written)

        def one(x: jax.Ref, factor: float, to: jax.Ref, ref: jax.Ref) -> None:
            memory.write(self.machine, x, to.at[place], self.sizes, lambda x: x if factor == 1.0 else x * factor)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(to.at[place], ref.at[self.b, rows, self.g])
            plgpu.wait_smem_to_gmem(0)

        of_keys, of_values = self.own["sums"]
        both = (of_keys, self.factor(), self.k_sm, self.dk), (of_values, 1.0, self.v_sm, self.dv)
        for who, (each, is_active) in enumerate(zip(both, active, strict=True)):
            if is_active:
                pl.when(wg == who)(functools.partial(one, *each))


backward_keys = functools.partial(run, _Keys)
"""`jattn_kernels.gpu.backward_keys.run` on Blackwell."""
