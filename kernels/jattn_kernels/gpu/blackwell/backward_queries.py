"""Backward on Blackwell, along queries: gradients stay in tensor memory, of 128 queries for each warpgroup."""

# The type checker sees jax 0.10, and Mosaic is that of 0.11 and later.
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental.pallas import mosaic_gpu as plgpu

from jattn_kernels.gpu.backward_queries import Queries, run
from jattn_kernels.gpu.blackwell import tensor_memory as memory
from jattn_kernels.gpu.layout import OperandLayout
from jattn_kernels.gpu.lists import Lists
from jattn_kernels.gpu.sizes import Sizes
from jattn_kernels.tiles.functions import TileFunctions


class _Queries(Queries):
    """A query tile of one head; `own`: the tiles of its products, and the gradients."""

    layout = plgpu.Layout.TCGEN05

    def begin(self, wg: jax.Array) -> None:
        memory.clear(self.machine, self.own["sum"].at[wg])

    def products(self, wg: jax.Array, slot: jax.Array) -> tuple[memory.Tile, memory.Tile]:
        operands = (self.q_sm.at[wg], self.k_sm.at[slot]), (self.dout_sm.at[wg], self.v_sm.at[slot])
        return self.own["tiles"].products(self.machine, wg, *operands)

    def narrow(self, x: jax.Array) -> jax.Array:
        return x.astype(self.k_sm.dtype)

    def add(self, wg: jax.Array, slot: jax.Array, dq: None, ds: jax.Array) -> None:
        tiles = self.own["tiles"]
        there = memory.store(tiles.scores[1].at[wg], ds)
        memory.multiply(self.own["sum"].at[wg], there, self.k_sm.at[slot], tiles.scores_done.at[wg], accumulate=True)

    def write(self, wg: jax.Array, dq: None) -> None:
        finish = lambda x: x * self.factor()
        memory.write(self.machine, self.own["sum"].at[wg], self.q_sm.at[wg], self.sizes, finish)


def backward_queries(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    dout: jax.Array,
    of_rows: Sequence[jax.Array],
    operands: Sequence[jax.Array],
    layouts: tuple[OperandLayout, ...],
    active: tuple[int, ...],
    functions: TileFunctions,
    lists: Lists,
    listed: Sequence[jax.Array],
    sizes: Sizes,
    *,
    interpret: Any = None,
) -> tuple[jax.Array, list[jax.Array]]:
    """What `jattn_kernels.gpu.hopper.backward_queries.backward_queries` returns, of the same arguments."""
    computing = sizes.rows // sizes.height
    memory.check(computing * (2 * sizes.columns + k.shape[-1]))
    own = {
        "tiles": memory.Backward.scratch(computing, sizes.columns, q.dtype),
        "sum": memory.sums(k.shape[-1], computing),
    }
    return run(
        _Queries,
        own,
        computing,
        q,
        k,
        v,
        dout,
        of_rows,
        operands,
        layouts,
        active,
        functions,
        lists,
        listed,
        sizes,
        interpret,
    )
