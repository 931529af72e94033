"""Gradients of operands in a TPU kernel: where each is added up, and how."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jattn_kernels.tiles.place import Index, Place
from jattn_kernels.tiles.work import Frame
from jattn_kernels.tpu.lanes import lane_slice, to_row
from jattn_kernels.tpu.layout import OperandLayout, array, diagonal
from jattn_kernels.tpu.sizes import LANES


def _unshear(x: jax.Array) -> jax.Array:
    """The transpose of `OperandLayout._shear`: `[rows, columns]` to sums along diagonals, `[1, rows + columns]`."""
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

    layout: OperandLayout
    frame: Frame

    @property
    def tiled(self) -> bool:
        return self.layout.along == "ts"

    def shape(self, b: int, h: int) -> jax.ShapeDtypeStruct:
        padded, sizes = self.frame.padded, self.frame.sizes
        if self.tiled:
            shape = (self.layout.batch, self.layout.heads, padded["t"], self.frame.key_tiles * sizes.key)
        else:
            n = {"": LANES, "t": padded["t"], "s": sizes.chunk, "r": sum(padded.values())}[self.layout.along]
            shape = (b, h, 1, n)
        return array(shape, jnp.float32)

    def spec(self, at: Callable) -> pl.BlockSpec:
        """`at(*grid)` gives batch element, head, query tile and chunk."""
        if self.tiled:
            return pl.BlockSpec(memory_space=pl.ANY)
        n = self.frame.sizes.query if self.layout.along == "t" else self.shape(1, 1).shape[-1]

        def index(*grid: Index):
            b, h, i, _ = at(*grid)
            return b, h, 0, i if self.layout.along == "t" else 0

        return pl.BlockSpec((None, None, 1, n), index)

    def clear(self, ref: jax.Ref, first: bool | jax.Array) -> None:
        """Sets what a grid step adds to to 0; `first`: the step is the head's first."""
        if self.layout.along == "t":
            ref[...] = jnp.zeros(ref.shape, ref.dtype)
        elif not self.tiled:

            @pl.when(first)
            def _():
                ref[...] = jnp.zeros(ref.shape, ref.dtype)

    def add(self, ref: jax.Ref, part: jax.Array, place: Place, scratch: tuple[jax.Ref, jax.Ref] | None) -> None:
        """Adds the gradient of a rectangle's part, keys along rows."""
        part = part.astype(jnp.float32)
        columns = lane_slice(place.column, place.columns)
        if self.layout.along == "":
            ref[...] += jnp.broadcast_to(part / LANES, ref.shape)
        elif self.layout.along == "t":
            ref[:, place.row : place.row + place.rows] += part
        elif self.layout.along == "s":
            ref[:, columns] += to_row(part)
        elif self.layout.along == "r":
            span = lane_slice(diagonal(self.frame, place), place.rows + place.columns)
            ref[:, span] += _unshear(part)
        else:
            self._add_tile(ref, part.T, place, scratch)

    def _add_tile(self, ref: jax.Ref, part: jax.Array, place: Place, scratch: tuple[jax.Ref, jax.Ref] | None) -> None:
        assert scratch is not None  # a call whose gradients are tiled has it
        tile, arrived = scratch
        b, h = self.layout.entry(place.b, place.h)
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
        layout = self.layout
        if self.tiled:
            return x
        if not layout.along:
            x = jnp.sum(x, -1, keepdims=True)
        x = x.reshape(-1, layout.batch, *x.shape[1:]).sum(0)
        x = x if layout.heads > 1 else x.sum(1, keepdims=True)
        return x if layout.along else x.reshape(-1)
