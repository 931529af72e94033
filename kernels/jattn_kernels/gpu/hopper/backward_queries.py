"""Backward on Hopper, along queries: the gradient of each warpgroup's queries stays in its registers."""

# The type checker sees jax 0.10, and Mosaic is that of 0.11 and later.
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportArgumentType=false

from __future__ import annotations

import functools

import jax

from jattn_kernels.gpu.backward_queries import Queries, run
from jattn_kernels.gpu.hopper.products import of_scores


class _Queries(Queries):
    """A query tile of one head."""

    needed = 2

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


backward_queries = functools.partial(run, _Queries)
"""`jattn_kernels.gpu.backward_queries.run` on Hopper."""
