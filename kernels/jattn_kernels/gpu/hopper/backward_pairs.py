"""Backward on Hopper, along pairs: the gradient is in registers, half of the rows in those of each warpgroup."""

# The type checker sees jax 0.10, and Mosaic is that of 0.11 and later.
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportArgumentType=false

from __future__ import annotations

import functools

import jax

from jattn_kernels.gpu.backward_pairs import Pairs, run
from jattn_kernels.gpu.hopper.products import of_scores
from jattn_kernels.tiles.place import Index


class _Pairs(Pairs):
    """A tile of one operand."""

    def products(self, wg: jax.Array, place: Index, slot: jax.Array) -> tuple[jax.Array, jax.Array]:
        del wg
        product, of_values = (self.q_sm.at[place], self.k_sm.at[slot]), (self.dout_sm.at[place], self.v_sm.at[slot])
        return of_scores(self.machine, product, of_values)


backward_pairs = functools.partial(run, _Pairs)
"""`jattn_kernels.gpu.backward_pairs.run` on Hopper."""
