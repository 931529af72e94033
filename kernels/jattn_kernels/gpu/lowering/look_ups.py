"""Rules of look-ups: of a slice at a computed place, and of numbers at computed indices."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jattn_kernels.gpu.lowering.arrays import ZERO, Evaluated, TileArithmetic, Value, ValueIndex, known
from jattn_kernels.gpu.lowering.equations import Equation
from jattn_kernels.gpu.lowering.tagged import NotLowered


def dynamic_slice(tile: TileArithmetic, eqn: Equation, x: Evaluated, *starts: Evaluated) -> Evaluated:
    out, shape = eqn.outvars[0].aval, eqn.invars[0].aval.shape
    tile.whole(shape, out.shape)
    starts = tuple(tile.at(s, ()) for s in starts)

    def move(d: int, i: Value | None) -> Value | None:
        if i is None:
            return None
        return tile.fold("add", tile.inside(starts[d], shape[d] - out.shape[d]), i)

    return tile.make(out.shape, out.dtype, lambda i: tile.at(x, tuple(move(d, y) for d, y in enumerate(i))))


def gather(tile: TileArithmetic, eqn: Equation, x: Evaluated, indices: Evaluated) -> Evaluated:
    """A look-up at computed indices: of the operand's axes some are found by index, others are in the result."""
    p, out, shape = eqn.params, eqn.outvars[0].aval, eqn.invars[0].aval.shape
    numbers, sizes, mode = p["dimension_numbers"], p["slice_sizes"], p["mode"]
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    window = [d for d in range(len(shape)) if d not in gone]
    batch = [d for d in range(len(out.shape)) if d not in numbers.offset_dims]
    if any(n in tile.sizes and n != m for n, m in zip(shape, sizes, strict=True)):
        raise NotLowered("looks at other places of the tile than its own")
    filled, promised = (mode == getattr(lax.GatherScatterMode, x) for x in ("FILL_OR_DROP", "PROMISE_IN_BOUNDS"))

    def at(index: ValueIndex) -> Value:
        places = [index[d] for d in batch]
        start = lambda n: tile.at(indices, (*places, known(n, np.int32)))
        where: list[Any] = [None if shape[d] in tile.sizes else ZERO for d in range(len(shape))]
        valid: list[Value] = []
        for n, d in enumerate(numbers.start_index_map):
            if shape[d] in tile.sizes:
                continue  # whole rows or columns begin at 0
            place, last = tile.convert(start(n), np.int32), shape[d] - sizes[d]
            if last < 0:
                raise NotLowered("cannot look up a table without entries")
            where[d] = place if promised else tile.inside(place, last)
            if filled:
                valid.append(tile.fold("ge", place, ZERO))
                valid.append(tile.fold("le", place, known(last, np.int32)))
        pairs = zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
        for d, axis in pairs:
            where[d] = places[axis]
        for d, o in zip(window, numbers.offset_dims, strict=True):
            where[d] = None if index[o] is None else tile.fold("add", where[d], index[o])
        value = tile.at(x, tuple(where))
        seen = functools.reduce(functools.partial(tile.fold, "and"), valid) if valid else known(True, np.bool_)
        if seen.known and seen.x:
            return value
        return tile.fold("select_n", seen, known(_fill(p.get("fill_value"), out.dtype), out.dtype), value)

    return tile.make(out.shape, out.dtype, at)


def _fill(value: Any, dtype: np.dtype) -> Any:
    """What a look-up outside an array gives, unless it was said."""
    if value is not None:
        return value
    if jnp.issubdtype(dtype, jnp.inexact):
        return np.nan
    if dtype == np.bool_:
        return True
    return np.iinfo(dtype).min if jnp.issubdtype(dtype, jnp.signedinteger) else np.iinfo(dtype).max


RULES: dict[str, Callable[..., Evaluated]] = {"dynamic_slice": dynamic_slice, "gather": gather}
"""`rule(tile, equation, *inputs)` of primitives that take numbers of an array by their indices."""
