"""Operands of terms in a TPU kernel: how each is laid out, which block of it a grid step holds, and a tile's part.

An operand has some of the axes `b h t s`; `r` stands for `t s` where it varies with j - i alone: a strip `[t + s]`.
Numbers without position go to scalar memory; per-query and per-key vectors lie along lanes, so that they take no more
memory than they have numbers; arrays with both axes come in tiles.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
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


def to_column(x: jax.Array) -> jax.Array:
    """`[1, n]` to `[n, 1]`."""
    return jnp.broadcast_to(x, (LANES, x.shape[1])).T[:, :1]


def to_row(x: jax.Array) -> jax.Array:
    """`[n, 1]` to `[1, n]`."""
    return jnp.broadcast_to(x, (x.shape[0], LANES)).T[:1]


@dataclasses.dataclass(frozen=True)
class Window:
    """How one operand is laid out: its axes, and how many entries it has for batch elements and heads."""

    axes: str
    batch: int
    heads: int
    boolean: bool

    @property
    def along(self) -> str:
        """Which of the axes `t s r` it has."""
        return "".join(a for a in self.axes if a in "tsr")

    def _entry(self, b: Any, h: Any) -> tuple[Any, Any]:
        return b % self.batch if self.batch > 1 else 0, h if self.heads > 1 else 0

    def spec(self, frame: Frame, at: Callable) -> pl.BlockSpec:
        """`at(*grid)` gives the batch element, head, query tile and chunk of a grid step."""
        if not self.along:
            return pl.BlockSpec(memory_space=pltpu.SMEM)

        def index(*grid):
            b, h, i, c = at(*grid)
            rest = {"t": (0, i), "s": (0, c), "ts": (i, c), "r": (0, 0)}[self.along]
            return (*self._entry(b, h), *rest)

        shape = {
            "t": (1, frame.sizes.query),
            "s": (1, frame.sizes.chunk),
            "ts": (frame.sizes.query, frame.sizes.chunk),
            "r": (1, sum(frame.padded.values())),
        }[self.along]
        return pl.BlockSpec((None, None, *shape), index)

    def read(self, ref: Any, place: Place, frame: Frame) -> jax.Array:
        """The part for a rectangle, broadcastable to its scores."""
        columns = pl.ds(pl.multiple_of(place.column, LANES), place.columns)
        if self.along == "":
            b, h = self._entry(place.b, place.h)
            part = ref[b * self.heads + h]
        elif self.along == "t":
            part = ref[:, place.row : place.row + place.rows]
            part = to_column(part) if place.upright else part
        elif self.along == "s":
            part = ref[:, columns]
            part = part if place.upright else to_column(part)
        elif self.along == "ts":
            part = ref[place.row : place.row + place.rows, columns]
            part = part.astype(jnp.float32 if jnp.issubdtype(part.dtype, jnp.floating) else jnp.int32)
            part = part if place.upright else part.T
        else:
            part = self._shear(ref, place, frame)
        return part != 0 if self.boolean else part

    def _shear(self, ref: Any, place: Place, frame: Frame) -> jax.Array:
        """Numbers along diagonals: [r, c] = ref[c + lane - (r + sublane) + length of the sublanes' axis]."""
        rows, columns = place.shape
        first = frame.diagonal(place)
        window = jnp.broadcast_to(ref[:, pl.ds(pl.multiple_of(first, LANES), rows + columns)], (rows, rows + columns))
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
