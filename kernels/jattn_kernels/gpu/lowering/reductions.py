"""Rules of reductions: over a tile's columns by the machine, over a table's axes one number after the other."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import numpy as np

from jattn_kernels.gpu.lowering.arrays import MOST_SUMMED, Evaluated, TileArithmetic, Value, ValueIndex, known
from jattn_kernels.gpu.lowering.equations import Equation
from jattn_kernels.gpu.lowering.tagged import NotLowered


def _reduce(tile: TileArithmetic, eqn: Equation, x: Evaluated, *, fold: str) -> Evaluated:
    shape, axes, out = eqn.invars[0].aval.shape, eqn.params["axes"], eqn.outvars[0].aval
    across = [shape[d] for d in axes if shape[d] in tile.sizes]
    if across and (fold != "add" or across != [tile.sizes[1]]):
        what = {"add": "sums", "max": "maxima", "min": "minima"}.get(fold, "results")
        over = "over rows" if fold == "add" else "over a tile"
        raise NotLowered(f"has no {what} {over}")
    steps = [range(shape[d]) if shape[d] not in tile.sizes else (None,) for d in axes]
    if math.prod(map(len, steps)) > MOST_SUMMED:
        raise NotLowered(f"takes sums of up to {MOST_SUMMED} numbers of a table")

    def at(index: ValueIndex) -> Value:
        values = []
        for place in itertools.product(*steps):
            rest, here = iter(index), dict(zip(axes, place, strict=True))
            where = tuple(
                (None if here[d] is None else known(here[d], np.int32)) if d in here else next(rest)
                for d in range(len(shape))
            )
            values.append(tile.at(x, where))
        value = functools.reduce(functools.partial(tile.fold, fold), values)
        return tile.row_sum(value) if across else value

    return tile.make(out.shape, out.dtype, at)


RULES: dict[str, Callable[..., Evaluated]] = {
    "reduce_sum": functools.partial(_reduce, fold="add"),
    "reduce_max": functools.partial(_reduce, fold="max"),
    "reduce_min": functools.partial(_reduce, fold="min"),
    "reduce_and": functools.partial(_reduce, fold="and"),
    "reduce_or": functools.partial(_reduce, fold="or"),
}
"""`rule(tile, equation, *inputs)` of primitives that reduce axes."""
