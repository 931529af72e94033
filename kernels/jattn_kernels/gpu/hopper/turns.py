"""Two warpgroups take turns: one gives its turn away without waiting, and goes on when the other has given its own.

By barriers that a multiprocessor has by number.  Those in shared memory do the same, and a forward pass took longer
with them on an H200 (bench/gpu/README.md): twice for each tile a warpgroup asked memory until the other had come.
"""

# The type checker sees jax 0.10, and Mosaic is that of 0.11 and later.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import llvm

_FIRST = 8  # the hardware has 16 barriers: Mosaic takes the lowest, one for each warpgroup and one for all
_THREADS = 256


def scratch(simulated: bool) -> Any:
    """What `Turns` takes: barriers in shared memory where there are no others."""
    return plgpu.Barrier(num_arrivals=1, num_barriers=2) if simulated else None


class Turns:
    """The turns of the warpgroups 0 and 1; nobody has one in the beginning.  Who is `alone` takes none."""

    def __init__(self, barriers: jax.Ref | None, alone: bool = False):
        self.barriers, self.alone = barriers, alone

    def give(self) -> None:
        """Makes it the other warpgroup's turn."""
        if self.alone:
            return
        other = 1 - lax.axis_index("wg")
        if self.barriers is None:
            _barrier("arrive", other)
        else:
            plgpu.barrier_arrive(self.barriers.at[other])

    def wait(self) -> None:
        """Waits until the other warpgroup has given its turn away."""
        if self.alone:
            return
        own = lax.axis_index("wg")
        if self.barriers is None:
            _barrier("sync", own)
        else:
            plgpu.barrier_wait(self.barriers.at[own])


def _barrier(does: Literal["arrive", "sync"], warpgroup: jax.Array) -> None:
    """A warpgroup's barrier, which both come to."""

    @plgpu.inline_mgpu(arg_types=(plgpu.Layout.WG_SPLAT,))
    def run(_: mgpu.LaunchContext, number: mgpu.FragmentedArray) -> None:
        void, text = ir.Type.parse("!llvm.void"), f"barrier.cta.{does} $0, {_THREADS};"
        llvm.inline_asm(void, [number.registers.item()], text, "r", has_side_effects=True)

    call: Any = run  # the decorator takes away the context, which types do not say
    call(jnp.int32(_FIRST) + warpgroup)
