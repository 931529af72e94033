"""Backward on Ampere and Ada, along pairs: a warpgroup has a tile of 64 queries; the gradient is in its registers."""

# The type checker sees jax 0.10, and Mosaic is that of 0.11 and later.
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportArgumentType=false

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from jattn_kernels.gpu.ampere.block import Alone, Stream
from jattn_kernels.gpu.backward_pairs import Pairs, run
from jattn_kernels.gpu.block import entry
from jattn_kernels.gpu.lists import LineVisits
from jattn_kernels.tiles.place import Index


class _Pairs(Alone, Pairs):
    """A tile of one operand."""

    def bring(self, b: jax.Array, h: jax.Array, visits: LineVisits, n: Index, slot: Index) -> None:
        """The n-th tile of a head's queries and keys, and what the operands have there."""
        machine, (i, j), g = self.machine, self.corner(visits, jnp.int32(n)), lax.div(h, jnp.int32(self.group))
        queries, keys = pl.ds(i, self.sizes.height), pl.ds(j, self.sizes.columns)
        machine.bring(self.q, (entry(b, self.batches[0]), queries, h), self.q_sm.at[slot])
        machine.bring(self.dout, (b, queries, h), self.dout_sm.at[slot])
        for row, ref in enumerate(self.of_rows):
            machine.bring(ref, (b, h, queries), self.row_sm.at[row, slot])
        for ref, to, batch in ((self.k, self.k_sm, self.batches[1]), (self.v, self.v_sm, self.batches[2])):
            machine.bring(ref, (entry(b, batch), keys, g), to.at[slot])
        self.staging.copy_passing(self.operands, self.staged, b, h, slot, (i, j), machine.bring)

    def compute(self, wg: Index) -> None:
        machine = self.machine

        def of_element(n: jax.Array, total: jax.Array) -> jax.Array:
            b, h = self.element(n)
            visits = self.lists.visits(self.listed, b, h, self.line)
            machine.wait(0)  # nobody needs the tiles of the last element
            self.coming = Stream(machine, self.sizes.steps, visits.total, functools.partial(self.bring, b, h, visits))
            self.coming.begin()
            resident = self.staging.read_resident(machine, self.operands, self.staged, b, h, 0, 0)
            for masked, begin, end in visits.kinds():
                tile = functools.partial(self.tile, wg, visits, 0, resident, masked)
                total = lax.fori_loop(begin, end, tile, total)
            return total

        total = lax.fori_loop(0, self.elements, of_element, machine.zeros(self.sizes.height, self.sizes.columns))
        self.write(wg, total)

    def products(self, wg: Index, place: Index, slot: jax.Array) -> tuple[jax.Array, jax.Array]:
        del wg
        product = self.machine.product(self.q_sm.at[place], self.k_sm.at[slot])
        return product, self.machine.product(self.dout_sm.at[place], self.v_sm.at[slot])

    def send(self, x: jax.Array, staged: Any, at: tuple[Any, ...]) -> None:
        if staged is None:
            self.machine.write_rows(x, self.gradient.at[at])
        else:
            self.machine.write(x, staged, self.gradient, at)


backward_pairs = functools.partial(run, _Pairs)
"""`jattn_kernels.gpu.backward_pairs.run` on Ampere."""
