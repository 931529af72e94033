"""Operands of terms in a GPU kernel: how each is laid out in global memory, staged in shared memory, and read.

A kernel's tiles have rows of one axis and columns of the other: queries and keys, or keys and queries where the
gradients of keys are computed.  What an operand has along rows is copied once for a block, what it has along columns
with every tile that goes by, and numbers without position are read from global memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jattn_kernels.gpu.lowering import Column, Row
from jattn_kernels.gpu.machine import Warpgroup
from jattn_kernels.gpu.sizes import Sizes
from jattn_kernels.tiles.place import Index

_ALIGNED = 16  # bytes: the accelerator of copies takes no other strides


def swizzle(width: int, itemsize: int) -> tuple[Any, Any]:
    """How a tile with rows of `width` numbers lies in shared memory, free of bank conflicts."""
    size = next(n for n in (128, 64, 32) if width * itemsize % n == 0)
    return plgpu.TilingTransform((8, size // itemsize)), plgpu.SwizzleTransform(size)


@dataclasses.dataclass(frozen=True)
class OperandLayout:
    """One operand: its axes, how many entries it has for batch elements and heads, and whether it is a mask."""

    axes: str
    batch: int
    heads: int
    dtype: jnp.dtype
    boolean: bool

    @property
    def along(self) -> str:
        """Which of the axes `t s` it has."""
        return "".join(a for a in self.axes if a in "ts")

    def entry(self, b: Index, h: Index) -> tuple[Any, Any]:
        return b % self.batch if self.batch > 1 else 0, h if self.heads > 1 else 0


def lay_out(array: jax.Array, axes: str, padded: dict[str, int]) -> tuple[jax.Array, OperandLayout]:
    """The array as a kernel takes it, `[batch, heads, ..]`, and its layout.

    Vectors are stretched to a length that tiles divide, `padded`; of arrays with both axes the rows are, to a multiple
    of 16 bytes, where they are not one.
    """
    batch, heads = (array.shape[axes.index(a)] if a in axes else 1 for a in "bh")
    boolean, along = array.dtype == jnp.bool_, "".join(a for a in axes if a in "ts")
    if jnp.issubdtype(array.dtype, jnp.floating):
        array = array if len(along) == 2 else array.astype(jnp.float32)
    elif array.dtype != jnp.uint32:
        array = array.astype(jnp.bfloat16 if boolean and len(along) == 2 else jnp.int32)
    array = array.reshape(batch, heads, *(array.shape[axes.index(a)] for a in along))
    if len(along) == 1:
        array = jnp.pad(array, ((0, 0), (0, 0), (0, padded[along] - array.shape[-1])), mode="edge")
    elif len(along) == 2:
        array = jnp.pad(array, ((0, 0),) * 3 + ((0, -array.shape[-1] % (_ALIGNED // array.dtype.itemsize)),))
    return array, OperandLayout(axes, batch, heads, array.dtype, boolean)


@dataclasses.dataclass(frozen=True)
class Staging:
    """Where the operands of a kernel stand in shared memory, and the copies that bring them there.

    `rows`: the axis along a tile's rows, `t` or `s`.
    """

    layouts: tuple[OperandLayout, ...]
    rows: str
    sizes: Sizes

    def _resident(self, layout: OperandLayout) -> bool:
        return layout.along == self.rows

    def _passing(self, layout: OperandLayout) -> bool:
        return bool(layout.along) and not self._resident(layout)

    @property
    def resident(self) -> int:
        """How many copies a warpgroup waits for before its first tile."""
        return sum(map(self._resident, self.layouts))

    @property
    def passing(self) -> int:
        """How many copies each tile waits for."""
        return sum(map(self._passing, self.layouts))

    def scratch(self) -> list[Any]:
        """The shared memory of each operand, None where it has none."""
        return [self._scratch(x) for x in self.layouts]

    def _scratch(self, layout: OperandLayout) -> Any:
        sizes = self.sizes
        if not layout.along:
            return None
        if self._resident(layout):
            return plgpu.SMEM((2, sizes.height), layout.dtype)
        if len(layout.along) == 1:
            return plgpu.SMEM((sizes.steps, sizes.columns), layout.dtype)
        transforms = swizzle(sizes.columns, layout.dtype.itemsize)
        return plgpu.SMEM((sizes.steps, sizes.rows, sizes.columns), layout.dtype, transforms=transforms)

    def copy_resident(
        self, refs: Sequence[jax.Ref], staged: Sequence[Any], b: Index, h: Index, wg: Index, first: Index, arrived: Any
    ) -> None:
        """What a warpgroup's rows have, which begin at `first`."""
        for layout, ref, to in zip(self.layouts, refs, staged, strict=True):
            if self._resident(layout):
                at = (*layout.entry(b, h), pl.ds(first, self.sizes.height))
                plgpu.copy_gmem_to_smem(ref.at[at], to.at[wg], arrived)

    def copy_passing(
        self,
        refs: Sequence[jax.Ref],
        staged: Sequence[Any],
        b: Index,
        h: Index,
        slot: Index,
        first: tuple[Index, Index],
        arrived: Any,
    ) -> None:
        """What a tile has whose first row and column are `first`."""
        for layout, ref, to in zip(self.layouts, refs, staged, strict=True):
            if self._passing(layout):
                row, column = (pl.ds(x, n) for x, n in zip(first, (self.sizes.rows, self.sizes.columns)))
                along = (row, column) if len(layout.along) == 2 else (column,)
                plgpu.copy_gmem_to_smem(ref.at[(*layout.entry(b, h), *along)], to.at[slot], arrived)

    def read_resident(
        self, machine: Warpgroup, refs: Sequence[jax.Ref], staged: Sequence[Any], b: Index, h: Index, wg: Index
    ) -> list[Any]:
        """What does not change from tile to tile; None in the place of the rest."""
        parts = []
        for layout, ref, to in zip(self.layouts, refs, staged, strict=True):
            if not layout.along:
                parts.append(self._of_its_kind(layout, ref[layout.entry(b, h)]))
            elif self._resident(layout):
                parts.append(Row(self._of_its_kind(layout, machine.row(to[wg]))))
            else:
                parts.append(None)
        return parts

    def read(
        self,
        machine: Warpgroup,
        resident: Sequence[Any],
        staged: Sequence[Any],
        slot: Index,
        wg: Index,
        columns: slice,
    ) -> list[Any]:
        """The operands' parts for some columns of a warpgroup's tile."""
        parts = []
        width = columns.stop - columns.start
        for layout, part, to in zip(self.layouts, resident, staged, strict=True):
            if self._passing(layout) and len(layout.along) == 1:
                at = (slot, pl.ds(columns.start, width))
                part = Column(self._of_its_kind(layout, machine.column(to.at[at][...])))
            elif self._passing(layout):
                rows = pl.ds(wg * self.sizes.height, self.sizes.height)
                part = machine.tile(to.at[slot, rows, pl.ds(columns.start, width)][...])
                floating = jnp.issubdtype(layout.dtype, jnp.floating)
                part = self._of_its_kind(layout, part.astype(jnp.float32) if floating else part)
            parts.append(part)
        return parts

    def _of_its_kind(self, layout: OperandLayout, x: jax.Array) -> jax.Array:
        return x != 0 if layout.boolean else x


