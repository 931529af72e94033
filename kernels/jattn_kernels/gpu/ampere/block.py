"""A block on Ampere: one warpgroup, which copies the tiles to come while it computes the one that is there.

More than one block works on a multiprocessor at once, so that others compute while one waits.
"""

# The type checker sees jax 0.10, and Mosaic is that of 0.11 and later.
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportArgumentType=false

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jattn_kernels.gpu.ampere.machine import SimulatedWarps, Warps
from jattn_kernels.gpu.block import ThreadBlock
from jattn_kernels.gpu.sizes import TileSizes
from jattn_kernels.tiles.place import Index


class Alone(ThreadBlock):
    """A block of one warpgroup."""

    machine: Warps
    machines = Warps, SimulatedWarps
    copies = False
    needed = 1
    # What a product leaves is another's left operand as it is, which only this lowering can say; every row of a tile is
    # in one warp, so sums along it need no memory.
    parameters = MappingProxyType({"lowering_semantics": plgpu.LoweringSemantics.Lane, "reduction_scratch_bytes": 0})
    coming: Stream

    @classmethod
    def stretch(cls, sizes: TileSizes) -> int:
        del sizes
        return 128

    def arrived(self, n: jax.Array) -> jax.Array:
        return self.coming.next(n)

    def leave(self, slot: jax.Array) -> None:
        del slot  # nobody copies over it before all come for the next tile


class Stream(NamedTuple):
    """The tiles that go by: `bring(n, slot)` copies the n-th of `count`, and some of them are under way at once."""

    machine: Warps
    steps: int
    count: Index
    bring: Callable[[Index, Index], None]

    def begin(self) -> None:
        """Once nothing that is in the slots is needed."""
        for n in range(self.steps - 1):
            self._begin(n, n)

    def next(self, n: jax.Array) -> jax.Array:
        """The slot of the n-th tile, once it is there and nobody needs the last one; another one is begun."""
        if self.steps == 1:
            self.machine.wait(0)
            self._begin(n, 0)
            self.machine.wait(0)
            return jnp.int32(0)
        self.machine.wait(self.steps - 2)
        coming = n + (self.steps - 1)
        self._begin(coming, lax.rem(coming, jnp.int32(self.steps)))
        return lax.rem(n, jnp.int32(self.steps))

    def _begin(self, n: Index, slot: Index) -> None:
        pl.when(n < self.count)(lambda: self.bring(n, slot))
        self.machine.commit()  # an empty group too: they are counted
