"""Backward on Hopper, along queries: the gradient of each warpgroup's queries stays in its registers."""

# The type checker sees jax 0.10, and Mosaic is that of 0.11 and later.
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from jattn_kernels.gpu.backward_queries import Queries, run
from jattn_kernels.gpu.hopper.products import of_scores
from jattn_kernels.gpu.layout import OperandLayout
from jattn_kernels.gpu.lists import LineLists
from jattn_kernels.gpu.sizes import Sizes
from jattn_kernels.tiles.functions import TileFunctions


class _Queries(Queries):
    """A query tile of one head."""

    def begin(self, wg: jax.Array) -> jax.Array:
        del wg
        return self.machine.zeros(self.sizes.height, self.q_sm.shape[-1])

    def products(self, wg: jax.Array, slot: jax.Array) -> tuple[jax.Array, jax.Array]:
        product, of_values = (self.q_sm.at[wg], self.k_sm.at[slot]), (self.dout_sm.at[wg], self.v_sm.at[slot])
        return of_scores(self.machine, product, of_values)

    def add(self, wg: jax.Array, slot: jax.Array, dq: jax.Array, ds: jax.Array) -> jax.Array:
        del wg
        return self.machine.accumulate(dq, ds.astype(self.k_sm.dtype), self.k_sm.at[slot])

    def write(self, wg: jax.Array, dq: jax.Array) -> None:
        self.q_sm.at[wg][...] = (dq * self.factor()).astype(self.q_sm.dtype)


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
    lists: LineLists,
    listed: Sequence[jax.Array],
    sizes: Sizes,
    *,
    interpret: Any = None,
) -> tuple[jax.Array, list[jax.Array]]:
    """dq `[b, t, h, d]`, and of the operands whose numbers are in `active`, along queries or without
    position, what each query adds to their gradient, float32 `[b, h, t]`.

    `of_rows`: the fields of `OfQueries`, `[b, h, t]` stretched to whole tiles; the rest as in the forward pass.
    """
    return run(
        _Queries, None, 2, q, k, v, dout, of_rows, operands, layouts, active, functions, lists, listed, sizes, interpret
    )
