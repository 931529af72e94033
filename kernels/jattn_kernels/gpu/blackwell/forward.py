"""Forward on Blackwell: sums stay in tensor memory, and each of two warpgroups has a tile of 128 queries.

Where heads are so wide that tensor memory holds the sums of one alone, there is one.
"""

# The type checker sees jax 0.10, and Mosaic is that of 0.11 and later.
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportArgumentType=false

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from jattn_kernels.gpu.blackwell import tensor_memory as memory
from jattn_kernels.gpu.forward import Forward, run
from jattn_kernels.gpu.sizes import TileSizes


class _Forward(Forward):
    """A query tile of one head; `own`: the tiles of products and of weights, the sums, and when products are done."""

    layout = plgpu.Layout.TCGEN05

    @classmethod
    def scratch(cls, d: int, e: int, dtype: jnp.dtype, sizes: TileSizes, simulated: bool) -> Any:
        del d, simulated
        computing = cls.warpgroups(sizes)
        memory.check(computing * (sizes.columns + e))
        tiles = memory.tiles_of_scores(computing, sizes.columns, dtype)
        return {"tiles": tiles, "sum": memory.sums(e, computing), "done": memory.done()}

    def begin(self, wg: jax.Array) -> None:
        memory.clear(self.machine, self.own["sum"].at[wg])

    def product(self, wg: jax.Array, slot: jax.Array) -> memory.TensorMemoryTile:
        products, _ = self.own["tiles"]
        keys = self.k_sm.at[slot].transpose((1, 0))
        memory.multiply(products.at[wg], self.q_sm.at[wg], keys, self.own["done"].at[wg])
        return memory.TensorMemoryTile(self.machine, products.at[wg])

    def shrink(self, wg: jax.Array, out: None, factor: jax.Array) -> None:
        memory.scale(self.machine, self.own["sum"].at[wg], factor)

    def add(self, wg: jax.Array, n: jax.Array, slot: jax.Array, out: None, weights: jax.Array) -> None:
        _, tiles = self.own["tiles"]
        there = memory.store(tiles.at[wg], weights)
        plgpu.barrier_wait(self.v_there.at[slot])
        memory.multiply(self.own["sum"].at[wg], there, self.v_sm.at[slot], self.own["done"].at[wg], accumulate=True)
        plgpu.barrier_arrive(self.v_free.at[slot])

    def write(self, wg: jax.Array, out: None, share: jax.Array, unseen: jax.Array) -> None:
        del unseen  # zeros stay zeros
        finish = lambda x: x * self.machine.broadcast(share, 0, x.shape)
        memory.write(self.machine, self.own["sum"].at[wg], self.out_sm.at[wg], self.sizes, finish)


forward = functools.partial(run, _Forward)
"""`jattn_kernels.gpu.forward.run` on Blackwell."""
