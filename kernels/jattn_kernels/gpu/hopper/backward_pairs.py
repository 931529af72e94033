"""Backward on Hopper, along pairs: the gradient is in registers, half of the rows in those of each warpgroup."""

# The type checker sees jax 0.10, and Mosaic is that of 0.11 and later.
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from jattn_kernels.gpu.backward_pairs import Pairs, run
from jattn_kernels.gpu.hopper.products import of_scores
from jattn_kernels.gpu.layout import OperandLayout
from jattn_kernels.gpu.lists import LineLists
from jattn_kernels.gpu.sizes import Sizes
from jattn_kernels.tiles.functions import TileFunctions


class _Pairs(Pairs):
    """A tile of one operand."""

    def products(self, wg: jax.Array, place: Any, slot: jax.Array) -> tuple[jax.Array, jax.Array]:
        del wg
        product, of_values = (self.q_sm.at[place], self.k_sm.at[slot]), (self.dout_sm.at[place], self.v_sm.at[slot])
        return of_scores(self.machine, product, of_values)


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
    """The gradient of the operand whose number is `active`, in the shape and dtype in which it is laid out.

    It has both axes, and the lines of `lists` are the tiles of scores, one of each; or it lies along diagonals, and
    lines are the diagonals of tiles, from the lowest on, whose tiles are counted by their queries.  The rest is as in
    `backward_queries`.
    """
    return run(
        _Pairs, None, q, k, v, dout, of_rows, operands, layouts, active, functions, lists, listed, sizes, interpret
    )
