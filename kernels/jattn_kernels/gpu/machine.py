"""What a kernel asks of the machine beside copies and barriers, and what the simulator does in its place.

Tiles of scores lie over the registers of a warpgroup as the matrix unit leaves them: by `wgmma` each thread holds two
rows, of tensor memory four, and of each a quarter of the columns.  Vectors lie as the rows or as the columns of such a
tile do.
"""

# The type checker sees jax 0.10, and Mosaic is that of 0.11 and later.
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.mosaic.gpu import fragmented_array
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.typing import ArrayLike

from jattn_kernels.gpu.look_up import look_up
from jattn_kernels.gpu.lowering import Kind
from jattn_kernels.gpu.sizes import EIGHT


class Warpgroup:
    """A warpgroup, whose tiles have that layout."""

    def __init__(self, layout: plgpu.Layout):
        self.layouts = {"tile": layout, "row": layout.reduce(1), "column": layout.reduce(0)}

    def tile(self, x: jax.Array) -> jax.Array:
        return plgpu.layout_cast(x, self.layouts["tile"])

    def row(self, x: jax.Array) -> jax.Array:
        """A vector with a number for each row of a tile."""
        return plgpu.layout_cast(x, self.layouts["row"])

    def column(self, x: jax.Array) -> jax.Array:
        """A vector with a number for each column of a tile."""
        return plgpu.layout_cast(x, self.layouts["column"])

    def count_rows(self, n: int) -> jax.Array:
        """The numbers 0 to n - 1, one for each row."""
        return plgpu.broadcasted_iota(jnp.int32, (n,), 0, layout=self.layouts["row"])

    def count_columns(self, n: int) -> jax.Array:
        """The numbers 0 to n - 1, one for each column."""
        return plgpu.broadcasted_iota(jnp.int32, (n,), 0, layout=self.layouts["column"])

    def full(self, value: ArrayLike, shape: tuple[int, ...], kind: Kind) -> jax.Array:
        """An array that is one number everywhere."""
        return {"tile": self.tile, "row": self.row, "column": self.column}[kind](jnp.full(shape, value))

    def broadcast(self, x: jax.Array, axis: int, shape: tuple[int, ...]) -> jax.Array:
        """A vector along rows (axis 0) or along columns (axis 1) as a tile."""
        return jax.lax.broadcast_in_dim(x, shape, [axis])

    def load(self, ref: jax.Ref, kind: Kind) -> jax.Array:
        """A vector or tile in memory."""
        return {"tile": self.tile, "row": self.row, "column": self.column}[kind](ref[...])

    def take(self, ref: jax.Ref, index: jax.Array, kind: Kind) -> jax.Array:
        """The numbers of a flat array in memory at indices."""
        return look_up(ref, index, self.layouts.get(kind))

    def widen(self, stored: jax.Ref, to: jax.Ref) -> None:
        """Writes a tile of 8 bits in shared memory to one of 16, which products then see."""
        x = plgpu.layout_cast(stored[...], _stored_layout())
        x = x if stored.dtype == jnp.int8 else x.astype(jnp.float32)
        to[...] = x.astype(to.dtype)
        plgpu.commit_smem()

    def write_in_order(self, ref: jax.Ref, tile: jax.Array) -> None:
        """Writes a tile to shared memory in the order of its rows, in which threads of a warp meet in one bank; all
        threads see it."""
        if hasattr(plgpu, "store"):  # from jax 0.12 on what is not fast has to be asked for
            plgpu.store(ref, tile, optimized=False)
        else:
            ref[...] = tile
        plgpu.commit_smem()

    def row_sum(self, x: jax.Array) -> jax.Array:
        """Sums of a tile's rows."""
        return self.row(jnp.sum(x, axis=1))

    def in_eights(self, x: jax.Array) -> jax.Array:
        """`[m, 8]`: what every eighth column of a tile sums up to.  Each thread has some of a tile's, so that sums over
        many tiles cost no exchange between threads, but for `row_sum` in the end."""
        parts = [x[:, at : at + EIGHT] for at in range(0, x.shape[1], EIGHT)]
        while len(parts) > 1:
            parts = [*map(jnp.add, parts[::2], parts[1::2])]
        return parts[0]

    def row_max(self, x: jax.Array) -> jax.Array:
        """The greatest numbers of a tile's rows."""
        return self.row(jnp.max(x, axis=1))

    def zeros(self, rows: int, columns: int | None = None) -> jax.Array:
        """Zeros in float32, of a tile or along its rows."""
        if columns is None:
            return self.row(jnp.zeros((rows,), jnp.float32))
        return self.tile(jnp.zeros((rows, columns), jnp.float32))

    def join(self, pieces: Sequence[jax.Array]) -> jax.Array:
        """Tiles side by side."""
        return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis=1)

    def after(self, xs: Sequence[jax.Array], others: Sequence[jax.Array]) -> list[jax.Array]:
        """xs, not computed with before `others` are: pieces of a tile then need registers one after the other."""
        return list(jax.lax.optimization_barrier((*xs, *others))[: len(xs)] if others else xs)

    def product(self, a: jax.Ref, b: jax.Ref, then: Callable[[], None] | None = None) -> jax.Array:
        """a `[m, d]` times b `[n, d]` transposed, both in shared memory; `then()` is run while it is under way."""
        (product,) = self.products([(a, b)], then)
        return product

    def products(
        self, pairs: Sequence[tuple[jax.Ref, jax.Ref]], then: Callable[[], None] | None = None
    ) -> list[jax.Array]:
        """`product` of each pair, all under way together: what is made of the first need not wait for the others."""

        def run(*refs: jax.Ref) -> list[jax.Array]:
            for ref, (a, b) in zip(refs, pairs, strict=True):
                plgpu.wgmma(ref, a, b.transpose((1, 0)))
            if then is not None:
                then()
            later = range(len(refs) - 1, -1, -1)
            return [self.tile(plgpu.wgmma_accumulator_load(ref, wait_n=n)) for ref, n in zip(refs, later, strict=True)]

        return pl.run_scoped(run, *[plgpu.ACC((a.shape[0], b.shape[0]), jnp.float32) for a, b in pairs])

    def accumulate(self, total: jax.Array, x: jax.Array, b: jax.Ref) -> jax.Array:
        """total + x `[m, n]`, in registers, times b `[n, e]` in shared memory."""
        (total,) = self.accumulate_all([(total, x, b)])
        return total

    def accumulate_with(
        self, total: jax.Array, x: jax.Array, b: jax.Ref, pair: tuple[jax.Ref, jax.Ref], then: Callable[[], None]
    ) -> tuple[jax.Array, jax.Array]:
        """`accumulate`, and with it under way the product of a pair; `then()` is run while they are."""

        def run(product: jax.Ref) -> tuple[jax.Array, jax.Array]:
            def both(ref: jax.Ref) -> None:
                plgpu.wgmma(ref, x, b)
                plgpu.wgmma(product, pair[0], pair[1].transpose((1, 0)))
                then()

            accumulated = pl.run_state(both)(plgpu.ACC.init(total))
            # What was added is waited for, and the product with it: both are there.
            return self.tile(accumulated), self.tile(plgpu.wgmma_accumulator_load(product, wait_n=None))

        return pl.run_scoped(run, plgpu.ACC((pair[0].shape[0], pair[1].shape[0]), jnp.float32))

    def accumulate_all(self, sums: Sequence[tuple[jax.Array, jax.Array, jax.Ref]]) -> list[jax.Array]:
        """`accumulate` of each, all under way together."""

        def run(refs: Sequence[jax.Ref]) -> None:
            for ref, (_, x, b) in zip(refs, sums, strict=True):
                plgpu.wgmma(ref, x, b)

        return [self.tile(x) for x in pl.run_state(run)([plgpu.ACC.init(total) for total, _, _ in sums])]


class Simulated(Warpgroup):
    """Numbers alone: the simulator knows no layouts, and of `wgmma` not all forms."""

    def tile(self, x: jax.Array) -> jax.Array:
        return x

    row = column = tile

    def count_rows(self, n: int) -> jax.Array:
        return jax.lax.iota(jnp.int32, n)

    count_columns = count_rows

    def take(self, ref: jax.Ref, index: jax.Array, kind: Kind) -> jax.Array:
        return ref[...].reshape(-1)[index]

    def widen(self, stored: jax.Ref, to: jax.Ref) -> None:
        to[...] = stored[...].astype(to.dtype)
        plgpu.commit_smem()

    def full(self, value: ArrayLike, shape: tuple[int, ...], kind: Kind) -> jax.Array:
        return jnp.full(shape, value)

    def after(self, xs: Sequence[jax.Array], others: Sequence[jax.Array]) -> list[jax.Array]:
        del others
        return list(xs)

    def products(
        self, pairs: Sequence[tuple[jax.Ref, jax.Ref]], then: Callable[[], None] | None = None
    ) -> list[jax.Array]:
        if then is not None:
            then()
        return [_dot(a[...], b[...], 1) for a, b in pairs]

    def accumulate_with(
        self, total: jax.Array, x: jax.Array, b: jax.Ref, pair: tuple[jax.Ref, jax.Ref], then: Callable[[], None]
    ) -> tuple[jax.Array, jax.Array]:
        then()
        return self.accumulate(total, x, b), self.product(*pair)

    def accumulate_all(self, sums: Sequence[tuple[jax.Array, jax.Array, jax.Ref]]) -> list[jax.Array]:
        return [total + _dot(x, b[...], 0) for total, x, b in sums]


def _stored_layout() -> Any:
    """Of a tile of 8 bits over a warpgroup's registers: a thread has four numbers of a row at once, and the threads of
    a warp eight rows, which never meet in a bank of swizzled memory."""
    tiling = fragmented_array.Tiling(((32, 16), (8, 16), (4,)))
    return plgpu.Layout.TILED(tiling, warp_dims=(-5,), lane_dims=(-3, -2), vector_dim=-1)


def _dot(a: jax.Array, b: jax.Array, axis: int) -> jax.Array:
    """a times b over a's columns and that axis of b."""
    return jax.lax.dot_general(a, b, (((1,), (axis,)), ((), ())), preferred_element_type=jnp.float32)
