"""Operands of terms in a TPU kernel: how each is laid out, which block of it a grid step holds, and a tile's part.

An operand has some of the axes `b h t s`; `r` stands for `t s` where it varies with j - i alone: a strip `[t + s]`;
`c` for `t s` where it is the same within cells, a static layout of bits.
Numbers without position go to scalar memory; per-query and per-key vectors lie along lanes, so that they take no more
memory than they have numbers; arrays with both axes come in tiles.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from jattn_kernels.tiles.cells import Cells
from jattn_kernels.tiles.place import Index, Place
from jattn_kernels.tiles.work import Frame
from jattn_kernels.tpu.lanes import lane_slice, to_column


def array(shape: tuple[int, ...], dtype: DTypeLike) -> jax.ShapeDtypeStruct:
    """The shape of an output.  Inside `jax.shard_map` it varies over no mesh axis, as the inputs of a kernel do."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.sharding.ManualAxisType())


def diagonal(frame: Frame, place: Place) -> Any:
    """Where in a strip of numbers `[t + s]` the part for a rectangle begins; it is as long as both its sides."""
    if place.transposed:
        return place.i - place.j + frame.padded["s"] - place.columns
    return place.j - place.i + frame.padded["t"] - place.rows


@dataclasses.dataclass(frozen=True)
class OperandLayout:
    """How one operand is laid out: its axes, and how many entries it has for batch elements and heads."""

    axes: str
    batch: int
    heads: int
    boolean: bool
    cells: Cells | None = None  # how the words of a packed mask, axis `c`, are laid out; None for other operands

    @property
    def along(self) -> str:
        """Which of the axes `t s r c` it has."""
        return "".join(a for a in self.axes if a in "tsrc")

    def entry(self, b: Index, h: Index) -> tuple[Any, Any]:
        return b % self.batch if self.batch > 1 else 0, h if self.heads > 1 else 0

    def spec(self, frame: Frame, at: Callable) -> pl.BlockSpec:
        """`at(*grid)` gives the batch element, head, query tile and chunk of a grid step."""
        if self.along in ("", "c"):
            return pl.BlockSpec(memory_space=pltpu.SMEM)

        def index(*grid: Index):
            b, h, i, c = at(*grid)
            rest = {"t": (0, i), "s": (0, c), "ts": (i, c), "r": (0, 0)}[self.along]
            return (*self.entry(b, h), *rest)

        shape = {
            "t": (1, frame.sizes.query),
            "s": (1, frame.sizes.chunk),
            "ts": (frame.sizes.query, frame.sizes.chunk),
            "r": (1, sum(frame.padded.values())),
        }[self.along]
        return pl.BlockSpec((None, None, *shape), index)

    def read(self, ref: jax.Ref, place: Place, frame: Frame) -> Any:
        """The part for a rectangle, broadcastable to its scores; of `c` a function of where positions count from."""
        columns = lane_slice(place.column, place.columns)
        if self.along == "":
            b, h = self.entry(place.b, place.h)
            part = ref[b * self.heads + h]
        elif self.cells is not None:
            return functools.partial(self.cells.read, ref, self.entry(place.b, place.h)[1], place, to_column)
        elif self.along == "t":
            part = ref[:, place.row : place.row + place.rows]
            part = part if place.transposed else to_column(part)
        elif self.along == "s":
            part = ref[:, columns]
            part = to_column(part) if place.transposed else part
        elif self.along == "ts":
            part = ref[place.row : place.row + place.rows, columns]
            part = part.astype(jnp.float32 if jnp.issubdtype(part.dtype, jnp.floating) else jnp.int32)
            part = self._only_inside(part.T, place, frame) if place.transposed else part
        else:
            part = self._shear(ref, place, frame)
        return part != 0 if self.boolean else part

    def _only_inside(self, part: jax.Array, place: Place, frame: Frame) -> jax.Array:
        """0 past the ends of the array in the place of what memory held: its products with 0 are 0."""
        if frame.t % frame.sizes.query == 0 and frame.s % frame.sizes.key == 0:
            return part
        i, j = place.positions()
        return jnp.where((i < frame.t) & (j < frame.s), part, jnp.zeros_like(part))

    def _shear(self, ref: jax.Ref, place: Place, frame: Frame) -> jax.Array:
        """Numbers along diagonals: [r, c] = ref[c + lane - (r + sublane) + length of the sublanes' axis]."""
        rows, columns = place.shape
        first = diagonal(frame, place)
        window = jnp.broadcast_to(ref[:, lane_slice(first, rows + columns)], (rows, rows + columns))
        return pltpu.roll(window, 0, 1, stride=1, stride_axis=0)[:, rows:]


def lay_out(array: jax.Array, axes: str, frame: Frame) -> tuple[jax.Array, OperandLayout]:
    """The array as a kernel takes it, `[batch, heads, ..]`, and its layout.

    Vectors are stretched to a length that tiles divide; their last number fills the rest.
    """
    batch, heads = (array.shape[axes.index(a)] if a in axes else 1 for a in "bh")
    layout = OperandLayout(axes, batch, heads, array.dtype == jnp.bool_)
    if jnp.issubdtype(array.dtype, jnp.floating):
        array = array if layout.along == "ts" else array.astype(jnp.float32)
    elif array.dtype != jnp.uint32:
        array = array.astype(jnp.int8 if layout.boolean and layout.along == "ts" else jnp.int32)
    if not layout.along:
        return array.reshape(-1), layout
    if layout.along in ("t", "s"):
        array = array.reshape(batch, heads, 1, -1)
        missing = frame.padded[layout.along] - array.shape[-1]
        array = jnp.pad(array, ((0, 0),) * 3 + ((0, missing),), mode="edge")
    return array.reshape(batch, heads, -1, array.shape[-1]), layout
