"""What both directions share: terms on tiles, and the walk over the key tiles of a query tile."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from jattn_kernels.tpu.operands import Frame, Place, Window, lane_slice
from jattn_kernels.tpu.work import Pattern, Piece, Step, Visits

LOG2E = math.log2(math.e)


class Terms(NamedTuple):
    """What happens to a tile between the two products, as functions of it, its positions and the operands' parts."""

    scores: Callable  # (score, i, j, masked, live, parts) -> score, -inf where masked or not `live`
    weights: Callable | None  # (weight, i, j, parts) -> weight
    natural: bool  # scores are natural logarithms, of any size; else log2(e) is a factor of the query or of `scale`
    scale: float | None  # of the product of query and key; None: it is a factor of the query
    reach: tuple[int, int]  # the first key that a query may see, and the first after the last
    sees: Callable | None = None  # (i, j, parts) -> which pairs see; None: each key in `reach` is seen by some query
    blind: bool = False  # queries may see nothing


def product(a: jax.Array, b: jax.Array, contract: tuple[int, int], precision: Any) -> jax.Array:
    """a and b contracted over one axis each, in float32; `precision` is that of float32 inputs."""
    precision = precision if a.dtype == b.dtype == jnp.float32 else None
    dims = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)


class Walk:
    """The tiles of one grid step.  Subclasses say what is done with the scores of a step.

    `ahead`: the products of the next step come before the exponentials of this one, to overlap with them.
    """

    ahead: bool

    def __init__(
        self,
        visits: Visits,
        operands: Any,
        place: tuple[Any, Any, Any],
        chunk: Any,
        *,
        frame: Frame,
        terms: Terms,
        windows: tuple[Window, ...],
        patterns: tuple[Pattern, ...],
        precision: Any,
        upright: bool,
    ):
        self.frame, self.sizes, self.terms, self.windows = frame, frame.sizes, terms, windows
        self.patterns, self.precision, self.upright = patterns, precision, upright
        self.full, self.partial, self.tile = visits
        self.operands = operands
        self.single = frame.key_tiles == 1
        self.b, self.h, self.i = place
        self.start = 0 if frame.chunks == 1 else chunk * self.sizes.chunk

    def scores(self, step: Step, tile: Any) -> Any:
        raise NotImplementedError

    def update(self, step: Step, tile: Any, scores: Any, first: bool, last: bool) -> None:
        """`first`, `last`: of all steps of this strip, as far as that is known while tracing."""
        raise NotImplementedError

    def place(self, step: Step, piece: Piece, tile: Any) -> Place:
        row, column = (step, piece) if self.upright else (piece, step)
        i, j = self.i * self.sizes.query + row.at, tile * self.sizes.key + column.at
        return Place(self.b, self.h, row.at, row.size, j - self.start, column.size, i, j, self.upright)

    def live(self, place: Place, piece: Piece) -> Any:
        """Which keys of a rectangle exist; True for all."""
        return place.positions()[1] < self.frame.s if piece.masked and self.frame.s % self.sizes.key else True

    def keys(self, ref: Any, place: Place, masked: bool, seen: Any = None) -> jax.Array:
        """Keys or values of a rectangle; those that no query sees are 0, whatever they hold: 0 * NaN is NaN.

        So are those past the end of the array.  `seen` `[keys, 1]`: those that some query of the rectangle sees.
        """
        x = ref[lane_slice(place.column, place.columns), :]
        first, end = self.terms.reach
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
        return [w.read(ref, place, self.frame) for w, ref in zip(self.windows, self.operands, strict=True)]

    def scaled(self, product: jax.Array) -> jax.Array:
        return product if self.terms.scale is None else product * self.terms.scale

    def work_off(self, steps: Pattern, tile: Any) -> None:
        coming = self.scores(steps[0], tile) if self.ahead else None
        for n, step in enumerate(steps):
            scores = coming if self.ahead else self.scores(step, tile)
            if self.ahead and n + 1 < len(steps):
                coming = self.scores(steps[n + 1], tile)
            first = self.single and all(x.at != step.at for x in steps[:n])
            last = self.single and all(x.at != step.at for x in steps[n + 1 :])
            self.update(step, tile, scores, first, last)

    def full_tile(self, n: Any) -> None:
        tile = 0 if self.single else self.tile(n, False)[0]
        self.work_off(self.sizes.whole(False, self.upright, rows_first=self.single), tile)

    def partial_tile(self, n: Any) -> None:
        tile, chosen = self.tile(n, True)
        tile = 0 if self.single else tile
        for number, steps in enumerate(self.patterns):
            run = functools.partial(self.work_off, steps, tile)
            run() if len(self.patterns) == 1 else pl.when(chosen == number)(run)

    def visit(self) -> None:
        """All full tiles, then all partial ones."""

        def loop(visit, count):
            def one(n, _):
                visit(n)
                return _

            count = np.int32(count) if isinstance(count, int) else count  # not of 64 bits, where those are on
            jax.lax.fori_loop(np.int32(0), count, one, np.int32(0))

        loop(self.full_tile, self.full)
        if self.patterns:
            loop(self.partial_tile, self.partial)
