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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jattn_kernels.tpu.work import LANES, Sizes


class Frame(NamedTuple):
    """Lengths of a call and its tile sizes."""

    t: int
    s: int
    sizes: Sizes

    @property
    def query_tiles(self) -> int:
        return pl.cdiv(self.t, self.sizes.query)

    @property
    def key_tiles(self) -> int:
        return pl.cdiv(self.s, self.sizes.key)

    @property
    def chunks(self) -> int:
        return pl.cdiv(self.s, self.sizes.chunk)

    @property
    def padded(self) -> dict[str, int]:
        """Lengths that tiles and chunks divide."""
        return {"t": self.query_tiles * self.sizes.query, "s": self.chunks * self.sizes.chunk}

    def diagonal(self, place: Place) -> Any:
        """Where in a strip `[t + s]` the part for a rectangle begins; it is as long as both its sides."""
        if place.upright:
            return place.j - place.i + self.padded["t"] - place.rows
        return place.i - place.j + self.padded["s"] - place.columns


class Place(NamedTuple):
    """A rectangle of one head's scores: its place in the grid step's blocks (`row` static) and its positions."""

    b: Any
    h: Any
    row: int
    rows: int
    column: Any
    columns: int
    i: Any
    j: Any
    upright: bool  # [rows, columns], or keys along rows

    @property
    def shape(self) -> tuple[int, int]:
        return (self.rows, self.columns) if self.upright else (self.columns, self.rows)

    def positions(self) -> tuple[jax.Array, jax.Array]:
        """i and j, each along its own axis."""
        shapes = ((self.rows, 1), (1, self.columns)) if self.upright else ((1, self.rows), (self.columns, 1))
        i, j = (jax.lax.broadcasted_iota(jnp.int32, x, x[0] == 1) for x in shapes)
        return i + self.i, j + self.j


def array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """Of an output.  Inside `jax.shard_map` it varies over no mesh axis, like the inputs that a kernel is given."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.sharding.ManualAxisType())


def lane_slice(start: Any, size: int) -> Any:
    """A slice that starts at a multiple of the number of lanes, known while tracing or not."""
    return pl.ds(start if isinstance(start, int) else pl.multiple_of(start, LANES), size)


def to_column(x: jax.Array) -> jax.Array:
    """`[1, n]` to `[n, 1]`."""
    return jnp.broadcast_to(x, (LANES, x.shape[1])).T[:, :1]


def to_row(x: jax.Array) -> jax.Array:
    """`[n, 1]` to `[1, n]`."""
    return jnp.broadcast_to(x, (x.shape[0], LANES)).T[:1]


class Cells(NamedTuple):
    """A layout of bits: (i, j) gets that of row i // side, column j // side; in words of 32 columns."""

    side: int
    rows: int
    words: int  # of a row

    def spanned(self, length: int) -> int:
        """How many cells a stretch of positions meets at most."""
        return (length + self.side - 2) // self.side + 1

    def within(self, position: jax.Array) -> jax.Array:
        """The cells of positions counted from the start of a cell, fewer than 2^20 of them."""
        if self.side & (self.side - 1) == 0:
            return position >> (self.side.bit_length() - 1)
        return ((position.astype(jnp.float32) + 0.5) * (1 / self.side)).astype(jnp.int32)  # the unit has no division

    def read(self, ref: Any, h: Any, place: Place, shift: Any) -> jax.Array:
        """The bits of a rectangle whose queries count from `shift`, as booleans.

        Rows' words are looked up one by one, each is scalar memory's.
        """
        i, j = place.i + shift, place.j
        row, column = jax.lax.div(i, jnp.int32(self.side)), jax.lax.div(j, jnp.int32(self.side))
        first = column >> 5
        words = range((self.spanned(place.columns) + 30) // 32 + 1)
        at = jax.lax.broadcasted_iota(jnp.int32, (1, place.rows), 1) + (i - row * self.side)
        cell = self.within(at)

        def look_up(n, lines):
            line = (h * self.rows + jnp.minimum(row + n, self.rows - 1)) * self.words
            entry = lambda w: ref[line + jnp.minimum(first + w, self.words - 1)]
            return [jnp.where(cell == n, entry(w), x) for w, x in zip(words, lines, strict=True)]

        lines = [jnp.zeros((1, place.rows), jnp.int32) for _ in words]
        count = self.spanned(place.rows)
        if count <= _UNROLLED:
            for n in range(count):
                lines = look_up(n, lines)
        else:
            lines = jax.lax.fori_loop(np.int32(0), np.int32(count), look_up, lines)
        if place.upright:
            lines = [to_column(x) for x in lines]
        shape = (1, place.columns) if place.upright else (place.columns, 1)
        at = jax.lax.broadcasted_iota(jnp.int32, shape, shape[0] == 1) + (j - column * self.side)
        column = self.within(at) + (column & 31)
        word = lines[0]
        for w in words[1:]:
            word = jnp.where(column >> 5 == w, lines[w], word)
        return (word >> (column & 31)) & 1 == 1


_UNROLLED = 8  # look-ups of a rectangle, beyond which they are a loop


@dataclasses.dataclass(frozen=True)
class Window:
    """How one operand is laid out: its axes, and how many entries it has for batch elements and heads."""

    axes: str
    batch: int
    heads: int
    boolean: bool
    cells: Cells | None = None  # of an operand with `c`

    @property
    def along(self) -> str:
        """Which of the axes `t s r c` it has."""
        return "".join(a for a in self.axes if a in "tsrc")

    def entry(self, b: Any, h: Any) -> tuple[Any, Any]:
        return b % self.batch if self.batch > 1 else 0, h if self.heads > 1 else 0

    def spec(self, frame: Frame, at: Callable) -> pl.BlockSpec:
        """`at(*grid)` gives the batch element, head, query tile and chunk of a grid step."""
        if self.along in ("", "c"):
            return pl.BlockSpec(memory_space=pltpu.SMEM)

        def index(*grid):
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

    def read(self, ref: Any, place: Place, frame: Frame) -> Any:
        """The part for a rectangle, broadcastable to its scores; of `c` a function of where queries count from."""
        columns = lane_slice(place.column, place.columns)
        if self.along == "":
            b, h = self.entry(place.b, place.h)
            part = ref[b * self.heads + h]
        elif self.cells is not None:
            return functools.partial(self.cells.read, ref, self.entry(place.b, place.h)[1], place)
        elif self.along == "t":
            part = ref[:, place.row : place.row + place.rows]
            part = to_column(part) if place.upright else part
        elif self.along == "s":
            part = ref[:, columns]
            part = part if place.upright else to_column(part)
        elif self.along == "ts":
            part = ref[place.row : place.row + place.rows, columns]
            part = part.astype(jnp.float32 if jnp.issubdtype(part.dtype, jnp.floating) else jnp.int32)
            part = part if place.upright else self._only_inside(part.T, place, frame)
        else:
            part = self._shear(ref, place, frame)
        return part != 0 if self.boolean else part

    def _only_inside(self, part: jax.Array, place: Place, frame: Frame) -> jax.Array:
        """0 past the ends of the array in the place of what memory held: its products with 0 are 0."""
        if frame.t % frame.sizes.query == 0 and frame.s % frame.sizes.key == 0:
            return part
        i, j = place.positions()
        return jnp.where((i < frame.t) & (j < frame.s), part, jnp.zeros_like(part))

    def _shear(self, ref: Any, place: Place, frame: Frame) -> jax.Array:
        """Numbers along diagonals: [r, c] = ref[c + lane - (r + sublane) + length of the sublanes' axis]."""
        rows, columns = place.shape
        first = frame.diagonal(place)
        window = jnp.broadcast_to(ref[:, lane_slice(first, rows + columns)], (rows, rows + columns))
        return pltpu.roll(window, 0, 1, stride=1, stride_axis=0)[:, rows:]


def lay_out(array: jax.Array, axes: str, frame: Frame) -> tuple[jax.Array, Window]:
    """The array as a kernel takes it, `[batch, heads, ..]`, and its window.

    Vectors are stretched to a length that tiles divide; their last number fills the rest.
    """
    batch, heads = (array.shape[axes.index(a)] if a in axes else 1 for a in "bh")
    window = Window(axes, batch, heads, array.dtype == jnp.bool_)
    if jnp.issubdtype(array.dtype, jnp.floating):
        array = array if window.along == "ts" else array.astype(jnp.float32)
    elif array.dtype != jnp.uint32:
        array = array.astype(jnp.int8 if window.boolean and window.along == "ts" else jnp.int32)
    if not window.along:
        return array.reshape(-1), window
    if window.along in ("t", "s"):
        array = array.reshape(batch, heads, 1, -1)
        missing = frame.padded[window.along] - array.shape[-1]
        array = jnp.pad(array, ((0, 0),) * 3 + ((0, missing),), mode="edge")
    return array.reshape(batch, heads, -1, array.shape[-1]), window


# Gradients


def _unshear(x: jax.Array) -> jax.Array:
    """The transpose of `Window._shear`: `[rows, columns]` to sums along diagonals, `[1, rows + columns]`."""
    rows, columns = x.shape
    x = jnp.concatenate([jnp.zeros((rows, rows), x.dtype), x], axis=1)
    at = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
    for bit in range((rows - 1).bit_length()):  # row r moves r to the left, a power of two at a time
        x = jnp.where((at >> bit) & 1 == 1, pltpu.roll(x, rows + columns - (1 << bit), 1), x)
    return jnp.sum(x, axis=0, keepdims=True)


@dataclasses.dataclass(frozen=True)
class Gradient:
    """Where the gradient of one operand goes, for every batch element and head; tiles `[t, s]` alone are added up over
    those that the operand lacks, in main memory, since each would need as much as the operand."""

    window: Window
    frame: Frame

    @property
    def tiled(self) -> bool:
        return self.window.along == "ts"

    def shape(self, b: int, h: int) -> jax.ShapeDtypeStruct:
        padded, sizes = self.frame.padded, self.frame.sizes
        if self.tiled:
            shape = (self.window.batch, self.window.heads, padded["t"], self.frame.key_tiles * sizes.key)
        else:
            n = {"": LANES, "t": padded["t"], "s": sizes.chunk, "r": sum(padded.values())}[self.window.along]
            shape = (b, h, 1, n)
        return array(shape, jnp.float32)

    def spec(self, at: Callable) -> pl.BlockSpec:
        """`at(*grid)` gives batch element, head, query tile and chunk."""
        if self.tiled:
            return pl.BlockSpec(memory_space=pl.ANY)
        n = self.frame.sizes.query if self.window.along == "t" else self.shape(1, 1).shape[-1]

        def index(*grid):
            b, h, i, _ = at(*grid)
            return b, h, 0, i if self.window.along == "t" else 0

        return pl.BlockSpec((None, None, 1, n), index)

    def clear(self, ref: Any, first: Any) -> None:
        """At the start of a grid step; `first`: it is the head's first."""
        if self.window.along == "t":
            ref[...] = jnp.zeros_like(ref)
        elif not self.tiled:

            @pl.when(first)
            def _():
                ref[...] = jnp.zeros_like(ref)

    def add(self, ref: Any, part: jax.Array, place: Place, scratch: tuple[Any, Any] | None) -> None:
        """Adds the gradient of a rectangle's part, keys along rows."""
        part = part.astype(jnp.float32)
        columns = lane_slice(place.column, place.columns)
        if self.window.along == "":
            ref[...] += jnp.broadcast_to(part / LANES, ref.shape)
        elif self.window.along == "t":
            ref[:, place.row : place.row + place.rows] += part
        elif self.window.along == "s":
            ref[:, columns] += to_row(part)
        elif self.window.along == "r":
            span = lane_slice(self.frame.diagonal(place), place.rows + place.columns)
            ref[:, span] += _unshear(part)
        else:
            self._add_tile(ref, part.T, place, *(scratch or (None, None)))

    def _add_tile(self, ref: Any, part: jax.Array, place: Place, tile: Any, arrived: Any) -> None:
        b, h = self.window.entry(place.b, place.h)
        rows = lane_slice(place.i, place.rows)
        there = ref.at[b, h, rows, lane_slice(place.j, place.columns)]
        here = tile.at[: place.rows, : place.columns]
        for source, target in ((there, here), (here, there)):
            copy = pltpu.make_async_copy(source, target, arrived)
            copy.start()
            copy.wait()
            if target is here:
                here[...] += part

    def total(self, x: jax.Array) -> jax.Array:
        """The gradient in the layout of `lay_out`, from what the kernel wrote."""
        window = self.window
        if self.tiled:
            return x
        if not window.along:
            x = jnp.sum(x, -1, keepdims=True)
        x = x.reshape(-1, window.batch, *x.shape[1:]).sum(0)
        x = x if window.heads > 1 else x.sum(1, keepdims=True)
        return x if window.along else x.reshape(-1)
