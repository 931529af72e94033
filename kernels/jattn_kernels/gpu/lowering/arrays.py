"""Arrays of a trace while it is replayed: a number for each place of a tile, or a function of an index."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from jattn_kernels.gpu.lowering.numbers import FOLDED, compute, convert
from jattn_kernels.gpu.lowering.tagged import Kind, Machine, NotLowered, Table


class Value(NamedTuple):
    """A number for each place that its kind says; a scalar that is known while tracing is one of NumPy."""

    x: Any
    kind: Kind

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.x.dtype)

    @property
    def known(self) -> bool:
        return isinstance(self.x, (np.generic, np.ndarray))


class Lazy(NamedTuple):
    """An array with axes other than a tile's, as a function of an index for each axis (None: an axis of the tile)."""

    shape: tuple[int, ...]
    dtype: np.dtype
    at: Callable[[tuple[Any, ...]], Value]
    floats: Callable[[], Value] | None = None
    """The same numbers in float32, made without converting a whole tile; of positions and their differences alone."""


Evaluated = Value | Lazy
ValueIndex = tuple[Any, ...]  # Any: of Value, or None along an axis of the tile

MOST_SUMMED = 64  # numbers of an array's axis that are looked up or summed one after the other
ZERO = Value(np.int32(0), "scalar")


def join(kinds: Sequence[Kind]) -> Kind:
    some = set(kinds) - {"scalar"}
    return "tile" if len(some) > 1 else some.pop() if some else "scalar"


def known(x: Any, dtype: DTypeLike) -> Value:
    return Value(np.asarray(x, dtype)[()], "scalar")


def narrowed(index: Sequence[Any], shape: Sequence[int]) -> ValueIndex:
    """The index of an array that is broadcast: 0 along its axes of length 1; of a scalar there is none."""
    return tuple(ZERO if n == 1 else i for i, n in zip(index, shape, strict=False)) if shape else ()


class TileArithmetic:
    """Arithmetic on arrays that were traced with `sizes` as a tile's rows and columns, of a tile of `shape`."""

    def __init__(self, shape: tuple[int, int], sizes: tuple[int, int], machine: Machine):
        self.shape, self.sizes, self.machine = shape, sizes, machine

    # ------------------------------------------------------------------------------------------------ values and kinds

    def lengths(self, kind: Kind) -> tuple[int, ...]:
        rows, columns = self.shape
        return {"scalar": (), "row": (rows,), "column": (columns,), "tile": (rows, columns)}[kind]

    def kind_of(self, shape: Sequence[int]) -> Kind:
        """The kind of an array of the trace that has no axes but the tile's."""
        axes = tuple(n for n in shape if n != 1)
        rows, columns = self.sizes
        kinds: dict[tuple[int, ...], Kind] = {
            (): "scalar", (rows,): "row", (columns,): "column", (rows, columns): "tile",
        }  # fmt: skip
        if axes not in kinds:
            raise NotLowered("cannot turn rows of a tile into columns")
        return kinds[axes]

    def spread(self, value: Value, kind: Kind) -> Any:
        """The array of a value as one of a wider kind."""
        if value.kind == kind:
            return value.x
        if value.kind == "scalar":
            return self.machine.full(value.x, self.lengths(kind), kind)
        return self.machine.broadcast(value.x, 0 if value.kind == "row" else 1, self.shape)

    def apply(self, fn: Callable[..., Any], *values: Value) -> Value:
        """A function of arrays of one shape, of the narrowest kind that all values fit in."""
        kind = join([v.kind for v in values])
        arrays = [self.spread(v, kind) for v in values]
        return Value(fn(*(jnp.asarray(x) if isinstance(x, (np.generic, np.ndarray)) else x for x in arrays)), kind)

    def fold(self, name: str, *values: Value) -> Value:
        """One of the primitives that are computed at once if they can be."""
        if all(v.known for v in values):
            with np.errstate(all="ignore"):
                x = FOLDED[name](*(v.x for v in values))
            compared = name in ("eq", "ne", "lt", "le", "gt", "ge")
            return known(x, np.bool_ if compared else values[-1].dtype)
        return self.apply(functools.partial(compute, name, {}), *values)

    # ------------------------------------------------------------------------------- arrays as functions of their index

    def make(self, shape: Sequence[int], dtype: DTypeLike, at: Callable[[ValueIndex], Value]) -> Evaluated:
        """An array from the value at an index: at once if it has the tile's axes alone."""
        index = tuple(None if n in self.sizes else ZERO for n in shape)
        if all(n == 1 or n in self.sizes for n in shape):
            self.kind_of(shape)
            return at(index)
        return Lazy(tuple(shape), np.dtype(dtype), at)

    def at(self, held: Evaluated, index: ValueIndex) -> Value:
        return held if isinstance(held, Value) else held.at(index)

    def linear(self, index: Sequence[Value], shape: Sequence[int]) -> Value:
        """The place in a flat array of an index of one that has this shape."""
        place = ZERO
        for x, n in zip(index, shape, strict=True):
            place = self.fold("add", self.fold("mul", place, known(n, np.int32)), x)
        return place

    def split(self, place: Value, shape: Sequence[int]) -> ValueIndex:
        """The index of an array from where in the flat array it stands."""
        index: list[Any] = []
        for n in reversed(shape):
            if n == 1:
                index.append(ZERO)
            elif place.known:
                index.append(known(place.x % n, np.int32))
                place = known(place.x // n, np.int32)
            else:
                index.append(self.apply(lambda x, n=n: lax.rem(x, jnp.full_like(x, n)), place))
                place = self.apply(lambda x, n=n: lax.div(x, jnp.full_like(x, n)), place)
        return tuple(reversed(index))

    def table(self, table: Table) -> Evaluated:
        """What is looked up at an index, when it is known."""

        def at(index: ValueIndex) -> Value:
            place = self.linear(index, table.shape)
            start = table.start
            if not (isinstance(start, int) and start == 0):
                start = known(start, np.int32) if isinstance(start, int) else Value(start, "scalar")
                place = self.fold("add", place, start)
            x = self.machine.take(table.ref, jnp.asarray(place.x, jnp.int32), place.kind)
            return Value(convert(x, np.dtype(table.dtype)), place.kind)

        return self.make(table.shape, table.dtype, at)

    def constant(self, x: Any) -> Evaluated:
        """An array that the function itself holds: looked up by comparing the index with each place."""
        array = np.asarray(x)
        if array.ndim == 0:
            return known(array, array.dtype)
        if array.size > MOST_SUMMED:
            raise NotLowered(f"cannot look up an array of {array.size} numbers that is no operand")

        def at(index: ValueIndex) -> Value:
            place = self.linear([ZERO if i is None else i for i in index], array.shape)
            flat = array.reshape(-1)
            if place.known:
                return known(flat[int(place.x)], array.dtype)
            value = known(flat[0], array.dtype)
            for n, number in enumerate(flat[1:], 1):
                here = self.fold("eq", place, known(n, np.int32))
                value = self.fold("select_n", here, value, known(number, array.dtype))
            return value

        if set(array.shape) & set(self.sizes):
            raise NotLowered("cannot take an array of its own for a tile")
        return self.make(array.shape, array.dtype, at)

    def whole(self, shape: Sequence[int], out: Sequence[int]) -> None:
        """Along the tile's axes nothing may be left out: where it would go, other numbers are."""
        if any(n in self.sizes and n != m for n, m in zip(shape, out, strict=True)):
            raise NotLowered("looks at other places of the tile than its own")

    def inside(self, index: Value, last: int) -> Value:
        """An index as int32, clipped to what an axis has."""
        index = self.convert(index, np.int32)
        return self.fold("min", self.fold("max", index, ZERO), known(last, np.int32))

    # --------------------------------------------------------------------------------------------------------- numbers

    def convert(self, value: Value, dtype: DTypeLike) -> Value:
        if value.dtype == dtype:
            return value
        return known(value.x, dtype) if value.known else self.apply(lambda x: convert(x, np.dtype(dtype)), value)

    def row_sum(self, value: Value) -> Value:
        """A number for each row; of what is the same in all columns by a product."""
        if value.kind in ("scalar", "row"):
            count = known(self.shape[1], value.dtype)
            return self.fold("mul", value, count)
        return Value(self.machine.row_sum(self.spread(value, "tile")), "row")
