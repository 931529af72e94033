"""Backward on Blackwell, along pairs: products come from tensor memory, an operand's gradient is in registers."""

# The type checker sees jax 0.10, and Mosaic is that of 0.11 and later.
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental.pallas import mosaic_gpu as plgpu

from jattn_kernels.gpu.backward_pairs import Pairs, run
from jattn_kernels.gpu.blackwell import tensor_memory as memory
from jattn_kernels.gpu.layout import OperandLayout
from jattn_kernels.gpu.lists import LineLists
from jattn_kernels.gpu.sizes import Sizes
from jattn_kernels.tiles.functions import TileFunctions


class _Pairs(Pairs):
    """A tile of one operand; `own`: the tiles of its products."""

    layout = plgpu.Layout.TCGEN05

    def products(self, wg: jax.Array, place: Any, slot: jax.Array) -> tuple[memory.Tile, memory.Tile]:
        operands = (self.q_sm.at[place], self.k_sm.at[slot]), (self.dout_sm.at[place], self.v_sm.at[slot])
        return self.own.products(self.machine, wg, *operands)


def backward_pairs(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    dout: jax.Array,
    of_rows: Sequence[jax.Array],
    operands: Sequence[jax.Array],
    layouts: tuple[OperandLayout, ...],
    active: int,
    functions: TileFunctions,
    lists: LineLists,
    listed: Sequence[jax.Array],
    sizes: Sizes,
    *,
    interpret: Any = None,
) -> jax.Array:
    """What `jattn_kernels.gpu.hopper.backward_pairs.backward_pairs` returns, of the same arguments."""
    computing = sizes.rows // sizes.height
    memory.check(2 * computing * sizes.columns)
    own = memory.Backward.scratch(computing, sizes.columns, q.dtype)
    return run(
        _Pairs, own, q, k, v, dout, of_rows, operands, layouts, active, functions, lists, listed, sizes, interpret
    )
