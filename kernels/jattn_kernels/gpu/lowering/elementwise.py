"""The rule of primitives that compute each number of their result from the numbers at its place."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax.numpy as jnp

from jattn_kernels.gpu.lowering.arrays import Evaluated, Lazy, TileArithmetic, Value, ValueIndex, known, narrowed
from jattn_kernels.gpu.lowering.equations import Equation
from jattn_kernels.gpu.lowering.numbers import ELEMENTWISE, FOLDED, ON_BITS, compute
from jattn_kernels.gpu.lowering.tagged import NotLowered

_OF_POSITIONS = ("sub", "neg", "abs")
"""Exact in float32 too, of positions below 2^24: converted once for each row and column, and not for each pair."""


def elementwise(tile: TileArithmetic, eqn: Equation, inputs: Sequence[Evaluated]) -> Evaluated:
    name, params = eqn.primitive.name, eqn.params
    if name not in ELEMENTWISE:
        raise NotLowered(f"has no {name.replace('_', ' ')}")
    out = eqn.outvars[0].aval
    shapes = [v.aval.shape for v in eqn.invars]
    floats = [x.floats for x in inputs if isinstance(x, Lazy) and x.floats is not None]
    if len(floats) == len(inputs) and name == "convert_element_type" and out.dtype == jnp.float32:
        return floats[0]()
    if len(floats) == len(inputs) and name in _OF_POSITIONS:
        wide = functools.cache(lambda: tile.apply(functools.partial(compute, name, params), *(x() for x in floats)))
        here = lambda _: tile.apply(
            functools.partial(compute, name, params), *(tile.at(x, (None, None)) for x in inputs)
        )
        return Lazy(out.shape, out.dtype, here, wide)

    def at(index: ValueIndex) -> Value:
        values = [tile.at(x, narrowed(index, s)) for x, s in zip(inputs, shapes, strict=True)]
        if name in FOLDED and all(v.known for v in values):
            return tile.fold(name, *values)
        if name == "convert_element_type" and values[0].known:
            return known(values[0].x, out.dtype)
        if name in ON_BITS and all(v.kind == "scalar" for v in values):
            # Mosaic has no bits of scalars; of a tile of one number the compiler computes one
            values = [Value(tile.spread(v, "tile"), "tile") for v in values]
        return tile.apply(functools.partial(compute, name, params), *values)

    return tile.make(out.shape, out.dtype, at)
