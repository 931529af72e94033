"""BackwardTiles on Blackwell, along queries: gradients stay in tensor memory, of 128 queries for each warpgroup."""

# The type checker sees jax 0.10, and Mosaic is that of 0.11 and later.
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportArgumentType=false

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from jattn_kernels.gpu.backward_queries import Queries, run
from jattn_kernels.gpu.blackwell import tensor_memory as memory
from jattn_kernels.gpu.machine import Simulated, Warpgroup
from jattn_kernels.gpu.sizes import TileSizes


class _Summing(Warpgroup):
    """A warpgroup that adds up the gradients of operands piece by piece."""

    def after(self, xs: Sequence[jax.Array], others: Sequence[jax.Array]) -> list[jax.Array]:
        """Also in the order of the assembler, which sees no barriers of the compiler's: it would put off the additions
        of all pieces to the end of the tile, and hold what is to be added in registers, which do not suffice."""
        first, *rest = super().after(xs, others)
        sums = [x for x in others if x.ndim == 1]
        if sums:
            first = first + self.broadcast(self._zero_after(sums), 0, first.shape)
        return [first, *rest]

    def _zero_after(self, sums: Sequence[jax.Array]) -> jax.Array:
        """0 for each row, which nobody knows before the sums are there: none of them is a signalling NaN, since those
        do not come of additions."""
        never = self.row(jnp.full(sums[0].shape, 0x7F800001, jnp.int32))
        some = functools.reduce(jnp.logical_or, [lax.bitcast_convert_type(x, jnp.int32) == never for x in sums])
        return jnp.where(some, 1.0, 0.0)


class _Queries(Queries):
    """A query tile of one head; `own`: the tiles of its products, and the gradients."""

    layout = plgpu.Layout.TCGEN05
    machines = _Summing, Simulated

    @classmethod
    def scratch(cls, d: int, e: int, dtype: jnp.dtype, sizes: TileSizes, simulated: bool) -> Any:
        del e, simulated
        computing = cls.warpgroups(sizes)
        memory.check(computing * (2 * sizes.columns + d))
        tiles = memory.BackwardTiles.scratch(computing, sizes.columns, dtype)
        return {"tiles": tiles, "sum": memory.sums(d, computing)}

    def begin(self, wg: jax.Array) -> None:
        memory.clear(self.machine, self.own["sum"].at[wg])

    def products(self, wg: jax.Array, slot: jax.Array) -> tuple[memory.TensorMemoryTile, memory.TensorMemoryTile]:
        operands = (self.q_sm.at[wg], self.k_sm.at[slot]), (self.dout_sm.at[wg], self.v_sm.at[slot])
        return self.own["tiles"].products(self.machine, wg, *operands)

    def keep(self, wg: jax.Array, columns: slice, weight: None, ds: jax.Array) -> tuple[None, tuple[()]]:
        return self.own["tiles"].keep(wg, columns, weight, ds)

    def add(self, wg: jax.Array, slot: jax.Array, dq: None, ds: tuple[()]) -> None:
        tiles = self.own["tiles"]
        there = memory.kept(tiles.weights[1].at[wg], self.sizes.columns)
        plgpu.commit_tmem()
        memory.multiply(self.own["sum"].at[wg], there, self.k_sm.at[slot], tiles.weights_done.at[wg], accumulate=True)

    def write(self, wg: jax.Array, dq: None) -> None:
        finish = lambda x: x * self.factor()
        memory.write(self.machine, self.own["sum"].at[wg], self.q_sm.at[wg], self.sizes, finish)


backward_queries = functools.partial(run, _Queries)
"""`jattn_kernels.gpu.backward_queries.run` on Blackwell."""
