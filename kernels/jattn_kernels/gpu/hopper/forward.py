"""Forward on Hopper: sums stay in registers, and two warpgroups take turns at the matrix unit.

While one is at its products, the other is at its exponentials.  Of few queries one warpgroup has all.
"""

# The type checker sees jax 0.10, and Mosaic is that of 0.11 and later.
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportArgumentType=false

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jattn_kernels.gpu.forward import Forward, run
from jattn_kernels.gpu.hopper import turns
from jattn_kernels.gpu.sizes import TileSizes

_WIDE = 128  # heads wider than this have tiles of fewer keys, so that waits take more of their time


class _Forward(Forward):
    """A query tile of one head."""

    # Every row of a tile is in one warp: sums along it need no memory, which tiles then have.
    parameters = MappingProxyType({**Forward.parameters, "reduction_scratch_bytes": 0})

    def __init__(self, refs: Sequence[jax.Ref | None], **static: Any):
        super().__init__(refs, **static)
        self.turns = turns.Turns(self.own, alone=self.warpgroups(self.sizes) == 1)

    @classmethod
    def for_widths(cls, d: int, e: int) -> type[Forward]:
        return _Ahead if max(d, e) > _WIDE else _Forward

    @classmethod
    def scratch(cls, d: int, e: int, dtype: jnp.dtype, sizes: TileSizes, simulated: bool) -> Any:
        return turns.scratch(simulated)

    def begin(self, wg: jax.Array) -> jax.Array:
        del wg
        return self.machine.zeros(self.sizes.height, self.v_sm.shape[-1])

    def loop(self, wg: jax.Array, first: jax.Array, resident: Sequence[Any], state: Any) -> Any:
        pl.when(wg == 1)(self.turns.wait)
        state = super().loop(wg, first, resident, state)
        pl.when(wg == 0)(self.turns.give)
        return state

    def product(self, wg: jax.Array, slot: jax.Array) -> jax.Array:
        return self.machine.product(self.q_sm.at[wg], self.k_sm.at[slot], self.turns.give)

    def shrink(self, wg: jax.Array, out: jax.Array, factor: jax.Array) -> jax.Array:
        del wg
        return out * self.machine.broadcast(factor, 0, out.shape)

    def add(self, wg: jax.Array, n: jax.Array, slot: jax.Array, out: jax.Array, weights: jax.Array) -> jax.Array:
        # This is in the warpgroup's next turn at the matrix unit, and all before was in its turn at the others.
        del wg, n
        plgpu.barrier_wait(self.v_there.at[slot])
        self.turns.wait()
        out = self.machine.accumulate(out, weights, self.v_sm.at[slot])
        plgpu.barrier_arrive(self.v_free.at[slot])
        return out

    def write(self, wg: jax.Array, out: jax.Array, share: jax.Array, unseen: jax.Array) -> None:
        del unseen  # zeros stay zeros
        out = out * self.machine.broadcast(share, 0, out.shape)
        self.out_sm.at[wg][...] = out.astype(self.out_sm.dtype)


class _Ahead(_Forward):
    """The product with a tile's keys is under way together with that of the weights before it: one wait for both.

    Beside the sum `out` has that product then.
    """

    def loop(self, wg: jax.Array, first: jax.Array, resident: Sequence[Any], state: Any) -> Any:
        out, *rest = state
        pl.when(wg == 1)(self.turns.wait)

        def begin() -> jax.Array:
            plgpu.barrier_wait(self.k_there.at[0])
            return self.product(wg, jnp.int32(0))

        def nothing() -> jax.Array:
            self.turns.give()
            return self.nothing()

        out = out, lax.cond(self.visits.total > 0, begin, nothing)
        (out, _), *rest = Forward.loop(self, wg, first, resident, (out, *rest))
        pl.when(wg == 0)(self.turns.wait)  # who has begun is given a turn more than it takes
        return out, *rest

    def nothing(self) -> jax.Array:
        """In the place of a product that nobody looks at."""
        return self.machine.zeros(self.sizes.height, self.sizes.columns)

    def arrived(self, n: jax.Array) -> jax.Array:
        return self.slot(n)  # `add` has waited for it

    def begun(self, wg: jax.Array, slot: jax.Array, out: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        del wg, slot
        total, product = out
        return product, total

    def add(
        self, wg: jax.Array, n: jax.Array, slot: jax.Array, out: jax.Array, weights: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        following, more = self.slot(n + 1), n + 1 < self.visits.total
        plgpu.barrier_wait(self.v_there.at[slot])
        pl.when(more)(lambda: plgpu.barrier_wait(self.k_there.at[following]))
        self.turns.wait()
        values, keys = self.v_sm.at[slot], (self.q_sm.at[wg], self.k_sm.at[following])
        both = lambda: self.machine.accumulate_with(out, weights, values, keys, self.turns.give)

        def last() -> tuple[jax.Array, jax.Array]:
            self.turns.give()
            return self.machine.accumulate(out, weights, values), self.nothing()

        sums = lax.cond(more, both, last)
        plgpu.barrier_arrive(self.v_free.at[slot])
        return sums


forward = functools.partial(run, _Forward)
"""`jattn_kernels.gpu.forward.run` on Hopper."""
