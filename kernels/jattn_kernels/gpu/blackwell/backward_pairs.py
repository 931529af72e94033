"""BackwardTiles on Blackwell, along pairs: products come from tensor memory, an operand's gradient is in registers."""

# The type checker sees jax 0.10, and Mosaic is that of 0.11 and later.
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportArgumentType=false

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from jattn_kernels.gpu.backward_pairs import Pairs, run
from jattn_kernels.gpu.blackwell import tensor_memory as memory
from jattn_kernels.gpu.sizes import TileSizes
from jattn_kernels.tiles.place import Index


class _Pairs(Pairs):
    """A tile of one operand; `own`: the tiles of its products."""

    layout = plgpu.Layout.TCGEN05

    @classmethod
    def scratch(cls, d: int, e: int, dtype: jnp.dtype, sizes: TileSizes, simulated: bool) -> Any:
        del d, e, simulated
        computing = cls.warpgroups(sizes)
        memory.check(2 * computing * sizes.columns)
        return memory.BackwardTiles.scratch(computing, sizes.columns, dtype)

    def products(
        self, wg: jax.Array, place: Index, slot: jax.Array
    ) -> tuple[memory.TensorMemoryTile, memory.TensorMemoryTile]:
        operands = (self.q_sm.at[place], self.k_sm.at[slot]), (self.dout_sm.at[place], self.v_sm.at[slot])
        return self.own.products(self.machine, wg, *operands)


backward_pairs = functools.partial(run, _Pairs)
"""`jattn_kernels.gpu.backward_pairs.run` on Blackwell."""
