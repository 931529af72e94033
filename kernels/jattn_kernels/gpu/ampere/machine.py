"""What a warpgroup of an Ampere multiprocessor does: its registers hold tiles as a Hopper's do, its warps multiply."""

# The type checker sees jax 0.10, and Mosaic is that of 0.11 and later.
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportArgumentType=false
# pyright: reportCallIssue=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.pallas import mosaic_gpu as plgpu

from jattn_kernels.gpu.ampere import copies
from jattn_kernels.gpu.lowering import Kind
from jattn_kernels.gpu.machine import Simulated, Warpgroup

_STRETCH = 64  # columns of a tile that are multiplied at once: 128 bytes, as tiles lie in memory


class Warps(Warpgroup):
    """A warpgroup whose warps multiply 16 rows each: the result of `mma.sync` lies as that of `wgmma` does.

    Both operands come from registers, and copies are waited for by all threads.
    """

    def broadcast(self, x: jax.Array, axis: int, shape: tuple[int, int]) -> jax.Array:
        return self.tile(super().broadcast(x, axis, shape))

    def load(self, ref: jax.Ref, kind: Kind) -> jax.Array:
        return plgpu.load(ref, layout=self.layouts[kind], optimized=False)

    def hold(self, a: jax.Ref) -> Any:
        """A tile `[m, d]` in shared memory as the left operand of products."""
        return plgpu.load(a, layout=plgpu.Layout.MMA_LHS(a.dtype), optimized=False)

    def products(self, pairs: Sequence[tuple[Any, jax.Ref]], then: Callable[[], None] | None = None) -> list[jax.Array]:
        assert then is None  # nothing is under way: products are instructions of these warps
        return [self._product(a, b) for a, b in pairs]

    def _product(self, a: jax.Array | jax.Ref, b: jax.Ref) -> jax.Array:
        """a `[m, d]`, in shared memory or held, times b `[n, d]` in shared memory, transposed."""
        total = self.zeros(a.shape[0], b.shape[0])
        if isinstance(a, jax.Array):
            return plgpu.mma(total, a, _load_right(b.transpose((1, 0))))
        for at in range(0, a.shape[1], _STRETCH):
            across = pl.ds(at, min(_STRETCH, a.shape[1] - at))
            total = plgpu.mma(total, self.hold(a.at[:, across]), _load_right(b.at[:, across].transpose((1, 0))))
        return total

    def accumulate_all(self, sums: Sequence[tuple[jax.Array, jax.Array, jax.Ref]]) -> list[jax.Array]:
        return [plgpu.mma(total, self.as_left(x), _load_right(b)) for total, x, b in sums]

    def as_left(self, x: jax.Array) -> jax.Array:
        """A tile in registers as the left operand of a product: each thread already holds what it needs."""
        layout = plgpu.Layout.MMA_LHS(x.dtype)
        lhs, result = layout.to_mgpu(), plgpu.ShapeDtypeStruct(x.shape, x.dtype, layout=layout)

        @plgpu.inline_mgpu(arg_types=(self.layouts["tile"],), return_type=result)
        def rename(_: mgpu.LaunchContext, x: mgpu.FragmentedArray) -> mgpu.FragmentedArray:
            registers = x.registers.reshape(lhs.registers_shape(x.shape))
            return mgpu.FragmentedArray(_registers=registers, _layout=lhs, _is_signed=x.is_signed)

        call: Any = rename  # the decorator takes away the context, which types do not say
        return call(x)

    def bring(self, ref: jax.Ref, at: tuple[Any, ...], to: jax.Ref) -> None:
        """Begins to copy `ref[at]` to shared memory, with zeros for what is past the end of an axis."""
        copies.bring(ref, at, to)

    def commit(self) -> None:
        """What was begun to be copied since the last time is a group."""
        copies.commit()

    def wait(self, groups: int) -> None:
        """Waits until what all threads copy is there, but for the last groups; and for all threads to come here."""
        copies.wait(groups)

    def write(self, x: jax.Array, staged: jax.Ref, ref: jax.Ref, at: tuple[Any, ...]) -> None:
        """Writes a tile to `ref[at]`, as far as that is there, by way of shared memory."""
        copies.write(x, staged, self.layouts["tile"])
        copies.send(staged, ref, at)

    def write_in_order(self, ref: jax.Ref, tile: jax.Array) -> None:
        copies.write(tile, ref, self.layouts["tile"], in_order=True)

    def write_rows(self, x: jax.Array, ref: jax.Ref) -> None:
        """Writes a number for each row to global memory."""
        copies.write(x, ref, self.layouts["row"])


def _load_right(b: jax.Ref) -> jax.Array:
    """A tile `[k, n]` in shared memory as the right operand of a product."""
    return plgpu.load(b, layout=plgpu.Layout.MMA_RHS(b.dtype), optimized=False)


class SimulatedWarps(Simulated, Warps):
    """Numbers alone: the simulator knows `mma.sync` and `cp.async` no more than layouts.  Every copy is waited for."""

    def broadcast(self, x: jax.Array, axis: int, shape: tuple[int, int]) -> jax.Array:
        return jax.lax.broadcast_in_dim(x, shape, [axis])

    def load(self, ref: jax.Ref, kind: Kind) -> jax.Array:
        return ref[...]

    def hold(self, a: jax.Ref) -> Any:
        return a[...]

    def bring(self, ref: jax.Ref, at: tuple[Any, ...], to: jax.Ref) -> None:
        def copy(arrived: jax.Ref) -> None:
            plgpu.copy_gmem_to_smem(ref.at[at], to, arrived)
            plgpu.barrier_wait(arrived)

        pl.run_scoped(copy, plgpu.Barrier())

    def commit(self) -> None:
        pass

    def wait(self, groups: int) -> None:
        pass

    def write(self, x: jax.Array, staged: jax.Ref, ref: jax.Ref, at: tuple[Any, ...]) -> None:
        staged[...] = x
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(staged, ref.at[at])
        plgpu.wait_smem_to_gmem(0)

    def write_in_order(self, ref: jax.Ref, tile: jax.Array) -> None:
        ref[...] = tile
        plgpu.commit_smem()

    def write_rows(self, x: jax.Array, ref: jax.Ref) -> None:
        ref[...] = x
