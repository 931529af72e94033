"""What both directions share: terms on tiles, and the walk over the key tiles of a query tile."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from jattn_kernels.tiles.functions import TileFunctions
from jattn_kernels.tiles.place import Index, Place
from jattn_kernels.tiles.work import Frame, Pattern, Stretch, Strip, Visits
from jattn_kernels.tpu.lanes import lane_slice
from jattn_kernels.tpu.layout import OperandLayout


def product(a: jax.Array, b: jax.Array, contract: tuple[int, int], precision: jax.lax.Precision | None) -> jax.Array:
    """a and b contracted over one axis each, in float32; `precision` is that of float32 inputs."""
    precision = precision if a.dtype == b.dtype == jnp.float32 else None
    dims = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)


class StepOptions(TypedDict):
    """What every step takes beside its place; see `GridStep`."""

    frame: Frame
    functions: TileFunctions
    layouts: tuple[OperandLayout, ...]
    patterns: tuple[Pattern, ...]
    precision: jax.lax.Precision | None


class GridStep:
    """The tiles of one step of the grid.  Subclasses say what is done with the scores of a strip.

    `transposed`: scores stand with keys along rows.  `ahead`: the products of the next strip come before the
    exponentials of this one, to overlap with them.
    """

    ahead: bool
    transposed: bool

    def __init__(
        self,
        visits: Visits,
        operands: Sequence[jax.Ref],
        place: tuple[Index, Index, Index],
        chunk: Index,
        *,
        frame: Frame,
        functions: TileFunctions,
        layouts: tuple[OperandLayout, ...],
        patterns: tuple[Pattern, ...],
        precision: jax.lax.Precision | None,
    ):
        self.frame, self.sizes, self.functions, self.layouts = frame, frame.sizes, functions, layouts
        self.patterns, self.precision = patterns, precision
        self.full, self.partial, self.tile = visits
        self.operands = operands
        self.single = frame.key_tiles == 1
        self.b, self.h, self.i = place
        self.start = 0 if frame.chunks == 1 else chunk * self.sizes.chunk

    def scores(self, strip: Strip, tile: Index) -> Any:
        raise NotImplementedError

    def update(self, strip: Strip, tile: Index, scores: Any, first: bool, last: bool) -> None:
        """`first`, `last`: of all strips of these rows, as far as that is known while tracing."""
        raise NotImplementedError

    def place(self, strip: Strip, stretch: Stretch, tile: Index) -> Place:
        row, column = (stretch, strip) if self.transposed else (strip, stretch)
        i, j = self.i * self.sizes.query + row.at, tile * self.sizes.key + column.at
        return Place(self.b, self.h, row.at, row.size, j - self.start, column.size, i, j, self.transposed)

    def live(self, place: Place, stretch: Stretch) -> Any:
        """Which keys of a rectangle exist; True for all."""
        return place.positions()[1] < self.frame.s if stretch.masked and self.frame.s % self.sizes.key else True

    def keys(self, ref: jax.Ref, place: Place, masked: bool, seen: jax.Array | None = None) -> jax.Array:
        """Keys or values of a rectangle; those that no query sees are 0, whatever they hold: 0 * NaN is NaN.

        So are those past the end of the array.  `seen` `[keys, 1]`: those that some query of the rectangle sees.
        """
        x = ref[lane_slice(place.column, place.columns), :]
        first, end = self.functions.reach
        at = jax.lax.broadcasted_iota(jnp.int32, (place.columns, 1), 0) + place.j
        if masked and end < self.frame.key_tiles * self.sizes.key:
            x = jnp.where(at < end, x, jnp.zeros_like(x))
        if masked and first > 0:
            x = jnp.where(at >= first, x, jnp.zeros_like(x))
        return x if seen is None else jnp.where(seen, x, jnp.zeros_like(x))

    def real_rows(self, place: Place) -> Any:
        """Which queries of a rectangle exist; True for all."""
        return place.positions()[0] < self.frame.t if self.frame.t % self.sizes.query else True

    def parts(self, place: Place) -> list[jax.Array]:
        """The operands' parts for a rectangle."""
        return [x.read(ref, place, self.frame) for x, ref in zip(self.layouts, self.operands, strict=True)]

    def scaled(self, product: jax.Array) -> jax.Array:
        return product if self.functions.scale is None else product * self.functions.scale

    def work_off(self, strips: Pattern, tile: Index) -> None:
        coming = self.scores(strips[0], tile) if self.ahead else None
        for n, strip in enumerate(strips):
            scores = coming if self.ahead else self.scores(strip, tile)
            if self.ahead and n + 1 < len(strips):
                coming = self.scores(strips[n + 1], tile)
            first = self.single and all(x.at != strip.at for x in strips[:n])
            last = self.single and all(x.at != strip.at for x in strips[n + 1 :])
            self.update(strip, tile, scores, first, last)

    def full_tile(self, n: Index) -> None:
        tile = 0 if self.single else self.tile(n, False)[0]
        self.work_off(self.sizes.whole(False, self.transposed, rows_first=self.single), tile)

    def partial_tile(self, n: Index) -> None:
        tile, chosen = self.tile(n, True)
        tile = 0 if self.single else tile
        for number, strips in enumerate(self.patterns):
            run = functools.partial(self.work_off, strips, tile)
            run() if len(self.patterns) == 1 else pl.when(chosen == number)(run)

    def visit(self) -> None:
        """All full tiles, then all partial ones."""

        def loop(visit: Callable[[jax.Array], None], count: Index) -> None:
            def one(n: jax.Array, _: jax.Array) -> jax.Array:
                visit(n)
                return _

            upper = np.int32(count) if isinstance(count, int) else count  # not of 64 bits, where those are on
            jax.lax.fori_loop(np.int32(0), upper, one, np.int32(0))

        loop(self.full_tile, self.full)
        if self.patterns:
            loop(self.partial_tile, self.partial)
