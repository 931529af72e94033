"""Operands of terms in a GPU kernel: how each is laid out in global memory, staged in shared memory, and read.

A kernel's tiles have rows of one axis and columns of the other: queries and keys, or keys and queries where the
gradients of keys are computed.  What an operand has along rows is copied once for a block, what it has along columns
with every tile that goes by, and numbers without position are read from global memory, as are tables.
"""

# The type checker sees jax 0.10, and Mosaic is that of 0.11 and later.
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportArgumentType=false

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jattn_kernels.gpu.lowering import Column, Row, Table
from jattn_kernels.gpu.machine import Warpgroup
from jattn_kernels.gpu.sizes import EIGHT, TileSizes, apart, stored_as
from jattn_kernels.tiles.cells import Cells
from jattn_kernels.tiles.place import Index

Copy = Callable[[jax.Ref, tuple[Any, ...], jax.Ref], None]
"""(ref, at, to): brings `ref[at]`, in global memory, to shared memory."""

_SWIZZLED = 128  # bytes of a row in the widest swizzle
_LONGEST = 256  # numbers along an axis that it copies at once


def swizzle(width: int, itemsize: int, columns: int = 128) -> tuple[Any, Any]:
    """How a tile with rows of `width` numbers lies in shared memory, free of bank conflicts."""
    size = stretch(width, itemsize, columns)
    return plgpu.TilingTransform((EIGHT, size)), plgpu.SwizzleTransform(size * itemsize)


def stretch(width: int, itemsize: int, columns: int = 128) -> int:
    """How many numbers of such a row stand together.

    A product over the `columns` of a tile takes no longer stretches than they are.
    """
    return next(n for n in (_SWIZZLED, 64, 32) if width * itemsize % n == 0 and n <= columns * itemsize) // itemsize


def _inside(numbers: Any, *index: jax.Array) -> jax.Array:
    """numbers[index] of an index that is never negative or past the end: nothing is done to make it so."""
    return numbers.at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)


class Diagonals(NamedTuple):
    """Numbers that vary with j - i alone, `[n]`, of which the first belongs to `first`."""

    numbers: Any
    first: Any

    def at(self, i: jax.Array, j: jax.Array) -> jax.Array:
        """The numbers of a tile, by its positions."""
        return _inside(self.numbers, j - i - self.first)


class TileNumbers(NamedTuple):
    """Numbers that were looked up for a tile, in the place of what they were found in."""

    numbers: Any

    def at(self, i: jax.Array, j: jax.Array) -> jax.Array:
        """The numbers of a tile, whatever its place."""
        del i, j
        return self.numbers


class Bits(NamedTuple):
    """A layout of bits in words of 32 columns, `[rows, words]`."""

    words: Any
    cells: Cells

    def at(self, i: jax.Array, j: jax.Array) -> jax.Array:
        """The bits of a tile, by its positions, as booleans."""
        row, column = (x // self.cells.side for x in (i, j))
        row = jnp.minimum(row, self.cells.rows - 1)  # queries past the end look at the last row
        word = _inside(self.words, row, jnp.minimum(column >> 5, self.cells.words - 1))
        return (word >> (column & 31)) & 1 == 1


@dataclasses.dataclass(frozen=True)
class OperandLayout:
    """One operand: its axes, how many entries it has for batch elements and heads, and what an entry is."""

    axes: str
    batch: int
    heads: int
    dtype: jnp.dtype
    boolean: bool
    table: tuple[int, ...] | None = None  # the shape of an entry that is looked up by the terms
    cells: Cells | None = None  # how a table of bits is laid out; None where it is no such table
    heads_last: bool = False  # whether it is `[batch, s, heads]` as it is, and comes with all heads

    @property
    def along(self) -> str:
        """Which of the axes `t s r` it has; `r` stands for `t s` where it varies with j - i alone."""
        return "".join(a for a in self.axes if a in "tsr")

    def entry(self, b: Index, h: Index) -> tuple[Any, Any]:
        return b % self.batch if self.batch > 1 else 0, h if self.heads > 1 else 0


def with_heads_last(array: jax.Array, padded: dict[str, int]) -> tuple[jax.Array, OperandLayout]:
    """`[b, s, g]` in float32 as a kernel takes it that sees few heads, of which copies bring all: nothing is moved."""
    layout = OperandLayout("bhs", len(array), array.shape[-1], array.dtype, False, heads_last=True)
    return jnp.pad(array, ((0, 0), (0, padded["s"] - array.shape[1]), (0, 0)), mode="edge"), layout


def lay_out(array: jax.Array, axes: str, padded: dict[str, int], rows: str) -> tuple[jax.Array, OperandLayout]:
    """The array as a kernel takes it whose tiles' rows are queries, `t`, or keys, `s`; and its layout.

    It is `[batch, heads, ..]`.  Vectors are stretched to a length that tiles divide, `padded`; arrays with both axes
    have those of the tile's rows in front, and consist of swizzled tiles as they are copied, 8 rows of 128 bytes.  What
    has further axes is flat.
    """
    batch, heads = (array.shape[axes.index(a)] if a in axes else 1 for a in "bh")
    boolean, along = array.dtype == jnp.bool_, "".join(a for a in axes if a in "tsr")
    further = array.shape[len(axes) :]
    if further:
        array = array.astype(jnp.int8) if boolean else array
        return array.reshape(-1), OperandLayout(axes, batch, heads, array.dtype, False, further)
    array = array.astype(stored_as(array.dtype, along == "ts"))
    array = array.reshape(batch, heads, *(array.shape[axes.index(a)] for a in along))
    if along in ("t", "s"):
        array = jnp.pad(array, ((0, 0), (0, 0), (0, padded[along] - array.shape[-1])), mode="edge")
    elif along == "ts":
        array = jnp.swapaxes(array, 2, 3) if rows == "s" else array
        more = (EIGHT, _SWIZZLED // array.dtype.itemsize)
        array = jnp.pad(array, ((0, 0), (0, 0), *((0, -n % m) for n, m in zip(array.shape[2:], more, strict=True))))
    return array, OperandLayout(axes, batch, heads, array.dtype, boolean)


@dataclasses.dataclass(frozen=True)
class Staging:
    """Where the operands of a kernel stand in shared memory, and the copies that bring them there.

    `rows`: the axis along a tile's rows, `t` or `s`.  `padded`: the length of queries that diagonals are counted with.
    `direct`: what rows have is not staged, but read where it is.  Whoever copies says how: `copy(ref, at, to)` brings
    `ref[at]`.
    `moving`: a block's tiles have rows of their own, which go by as columns do.
    """

    layouts: tuple[OperandLayout, ...]
    rows: str
    sizes: TileSizes
    padded: int
    direct: bool = False
    moving: bool = False

    def _resident(self, layout: OperandLayout) -> bool:
        return layout.along == self.rows and not self.moving

    def _passing(self, layout: OperandLayout) -> bool:
        return bool(layout.along) and not self._resident(layout)

    @property
    def resident(self) -> int:
        """How many copies a warpgroup waits for before its first tile."""
        return sum(map(self._resident, self.layouts))

    @property
    def of_heads(self) -> bool:
        """Whether some of these differ from head to head."""
        return any(self._resident(x) and x.heads > 1 for x in self.layouts)

    @property
    def passing(self) -> int:
        """How many copies each tile waits for."""
        copies = lambda layout: len(self._stretches) if layout.along == "r" else 1
        return sum(copies(x) for x in self.layouts if self._passing(x))

    def scratch(self) -> list[Any]:
        """The shared memory of each operand, None where it has none."""
        return [self._scratch(x) for x in self.layouts]

    def _scratch(self, layout: OperandLayout) -> Any:
        sizes = self.sizes
        if not layout.along or (self.direct and self._resident(layout)):
            return None
        if self._resident(layout):
            return plgpu.SMEM((2, sizes.height), layout.dtype)
        if layout.heads_last:
            return plgpu.SMEM((sizes.steps, sizes.columns, layout.heads), layout.dtype)
        if layout.along == "ts":
            transforms = swizzle(sizes.columns, layout.dtype.itemsize)
            return plgpu.SMEM((sizes.steps, sizes.rows, sizes.columns), layout.dtype, transforms=transforms)
        length = {"r": self._diagonals, self.rows: sizes.rows}.get(layout.along, sizes.columns)
        return plgpu.SMEM((sizes.steps, apart(length, layout.dtype)), layout.dtype)

    @property
    def _diagonals(self) -> int:
        """How many diagonals a tile of the block meets, and one more."""
        return self.sizes.rows + self.sizes.columns

    @property
    def _stretches(self) -> list[tuple[int, int]]:
        """Where each copy of the diagonals begins, and how many it brings."""
        n = self._diagonals
        return [(at, min(_LONGEST, n - at)) for at in range(0, n, _LONGEST)]

    def _first_diagonal(self, first: tuple[Index, Index]) -> Index:
        """j - i of the first that is copied: one before the least of the tile."""
        row, column = first
        if self.rows == "t":
            return column - row - self.sizes.rows
        return row - column - self.sizes.columns

    def copy_resident(
        self, refs: Sequence[jax.Ref], staged: Sequence[Any], b: Index, h: Index, wg: Index, first: Index, copy: Copy
    ) -> None:
        """What a warpgroup's rows have, which begin at `first`."""
        for layout, ref, to in zip(self.layouts, refs, staged, strict=True):
            if self._resident(layout):
                at = (*layout.entry(b, h), pl.ds(first, self.sizes.height))
                copy(ref, at, to.at[wg])

    def copy_passing(
        self,
        refs: Sequence[jax.Ref],
        staged: Sequence[Any],
        b: Index,
        h: Index,
        slot: Index,
        first: tuple[Index, Index],
        copy: Copy,
    ) -> None:
        """What a tile has whose first row and column are `first`."""
        row, column = pl.ds(first[0], self.sizes.rows), pl.ds(first[1], self.sizes.columns)
        diagonal = self._first_diagonal(first) + self.padded
        for layout, ref, to in zip(self.layouts, refs, staged, strict=True):
            if not self._passing(layout):
                continue
            at = layout.entry(b, h)
            if layout.heads_last:
                copy(ref, (at[0], column), to.at[slot])
            elif layout.along == "r":
                for begin, n in self._stretches:
                    copy(ref, (*at, pl.ds(diagonal + begin, n)), to.at[slot, pl.ds(begin, n)])
            else:
                along = {"ts": (row, column), self.rows: (row,)}.get(layout.along, (column,))
                to = to.at[slot] if layout.along == "ts" else to.at[slot, pl.ds(0, along[0].size)]
                copy(ref, (*at, *along), to)

    def read_resident(
        self,
        machine: Warpgroup,
        refs: Sequence[jax.Ref],
        staged: Sequence[Any],
        b: Index,
        h: Index,
        wg: Index,
        first: Index,
    ) -> list[Any]:
        """What does not change from tile to tile of rows that begin at `first`; None in the place of the rest."""
        parts: list[Any] = []
        for layout, ref, to in zip(self.layouts, refs, staged, strict=True):
            if layout.table is not None:
                parts.append(self._table(layout, ref, b, h))
            elif not layout.along:
                parts.append(self._of_its_kind(layout, ref[layout.entry(b, h)]))
            elif layout.heads_last:
                parts.append(h)  # which of what comes with each tile is its own
            elif self._resident(layout):
                here = ref.at[(*layout.entry(b, h), pl.ds(first, self.sizes.height))] if self.direct else to.at[wg]
                parts.append(Row(self._of_its_kind(layout, machine.load(here, "row"))))
            else:
                parts.append(None)
        return parts

    def _table(self, layout: OperandLayout, ref: jax.Ref, b: Index, h: Index) -> Any:
        assert layout.table is not None
        (b, h), size = layout.entry(b, h), 1
        for n in layout.table:
            size *= n
        boolean = layout.dtype == jnp.int8
        table = Table(ref, layout.table, jnp.bool_ if boolean else layout.dtype, (b * layout.heads + h) * size)
        return table if layout.cells is None else Bits(table, layout.cells)

    def read(
        self,
        machine: Warpgroup,
        resident: Sequence[Any],
        staged: Sequence[Any],
        slot: Index,
        place: Index,
        columns: slice,
        first: tuple[Index, Index],
    ) -> list[Any]:
        """The operands' parts for some columns of a tile, `place`: of the rows of its first warpgroup or its second."""
        parts = []
        across = pl.ds(columns.start, columns.stop - columns.start)
        for layout, part, to in zip(self.layouts, resident, staged, strict=True):
            if not self._passing(layout):
                pass
            elif layout.heads_last:
                index = (machine.count_columns(across.size) + across.start) * layout.heads + part
                part = Column(machine.take(to.at[slot], index, "column"))
            elif layout.along == "r":
                part = Diagonals(Table(to.at[slot], (self._diagonals,), jnp.float32), self._first_diagonal(first))
            elif layout.along == "ts":
                part = self._of_pairs(machine, layout, to.at[slot], place, columns)
                part = part.astype(jnp.float32) if jnp.issubdtype(layout.dtype, jnp.floating) else part
                part = self._of_its_kind(layout, part)
            elif layout.along == self.rows:
                here = to.at[slot, pl.ds(place * self.sizes.height, self.sizes.height)]
                part = Row(self._of_its_kind(layout, machine.load(here, "row")))
            else:
                part = Column(self._of_its_kind(layout, machine.load(to.at[slot, across], "column")))
            parts.append(part)
        return parts

    def _of_pairs(
        self, machine: Warpgroup, layout: OperandLayout, staged: jax.Ref, place: Index, columns: slice
    ) -> jax.Array:
        """Some columns of an array with both axes: read with those that lie in the same swizzled stretch."""
        stretch = min(_SWIZZLED // layout.dtype.itemsize, self.sizes.columns)
        begin = columns.start // stretch * stretch
        end = -(-columns.stop // stretch) * stretch
        rows = pl.ds(place * self.sizes.height, self.sizes.height)
        part = machine.load(staged.at[rows, pl.ds(begin, end - begin)], "tile")
        return part[:, columns.start - begin : columns.stop - begin]

    def _of_its_kind(self, layout: OperandLayout, x: jax.Array) -> jax.Array:
        return x != 0 if layout.boolean else x
