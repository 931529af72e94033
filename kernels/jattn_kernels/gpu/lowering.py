"""A tile function inside a Mosaic GPU kernel, whose lowering lacks many of JAX's primitives.

`lowered(fn, shape, machine)` traces fn as every backend does, with tiles `[rows, columns]` and positions `[rows,
1]` and `[1, columns]`, and replays what was traced. While it does,

- what depends on a row or a column alone stays a vector, which a thread holds few numbers of: only the first
  operation that mixes rows and columns makes a whole tile;
- primitives that Mosaic lacks are rewritten (`rewrites.py`), calls inlined, short loops unrolled;
- a `Table` is never loaded as an array: it is a function of indices, as is all that is computed of it, until the
  indices are known and one number for each place is looked up.

The trace has stand-ins for rows and columns, two primes, so that a dimension's size says which of the two it is,
however large the tile is: a tile may have as many rows as columns, or one of either.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from jattn_kernels.gpu import rewrites

Kind = Literal["scalar", "row", "column", "tile"]
"""What a value depends on: nothing, its row, its column, both.  `row`: a number for each row, `[rows]`."""


class NotLowered(NotImplementedError):
    """What no GPU kernel evaluates; the message is a clause whose subject is the kernel."""


class Row(NamedTuple):
    """A number for each row of a tile, `[rows]`; in the traced function `[rows, 1]`."""

    x: Any  # jax.Array; what makes one of int32, if it is asked for; jax.ShapeDtypeStruct in a dry run


class Column(NamedTuple):
    """A number for each column of a tile, `[columns]`; in the traced function `[1, columns]`."""

    x: Any  # as a row's


class Table(NamedTuple):
    """An array in memory of which numbers are looked up: to the traced function an array of this shape and dtype."""

    ref: Any  # a flat reference in shared or global memory; None in a dry run
    shape: tuple[int, ...]
    dtype: DTypeLike  # of what the function sees; in memory booleans are int8
    start: Any = 0  # where in `ref` the array begins, an int or an int32 scalar


class Machine(Protocol):
    """What the replay asks of the machine that it runs on."""

    def full(self, value: Any, shape: tuple[int, ...], kind: Kind) -> jax.Array:
        """An array of one number, a scalar known while tracing or not.

        A layout that is said here, of tiles above all, spares Mosaic a search for one, which long functions exhaust.
        """
        ...

    def broadcast(self, x: jax.Array, axis: int, shape: tuple[int, int]) -> jax.Array:
        """A vector as a whole tile; it lies along the tile's `axis`: 0 of a number for each row."""
        ...

    def row_sum(self, x: jax.Array) -> jax.Array:
        """A tile's sum over its columns, a number for each row."""
        ...

    def take(self, ref: Any, index: jax.Array, kind: Kind) -> jax.Array:
        """The numbers of a flat reference at int32 indices, all of which are inside; in the reference's dtype."""
        ...


class Plain:
    """The machine of plain arrays: a dry run's, and the simulator's."""

    def full(self, value: Any, shape: tuple[int, ...], kind: Kind) -> jax.Array:
        del kind
        return jnp.full(shape, value)

    def broadcast(self, x: jax.Array, axis: int, shape: tuple[int, int]) -> jax.Array:
        return lax.broadcast_in_dim(x, shape, (axis,))

    def row_sum(self, x: jax.Array) -> jax.Array:
        return jnp.sum(x, 1)

    def take(self, ref: Any, index: jax.Array, kind: Kind) -> jax.Array:
        del kind
        return ref[...][index]


class _Value(NamedTuple):
    """A number for each place that its kind says; a scalar that is known while tracing is one of NumPy."""

    x: Any
    kind: Kind

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.x.dtype)

    @property
    def known(self) -> bool:
        return isinstance(self.x, (np.generic, np.ndarray))


class _Lazy(NamedTuple):
    """An array with axes other than a tile's, as a function of an index for each axis (None: an axis of the tile)."""

    shape: tuple[int, ...]
    dtype: np.dtype
    at: Callable[[tuple[Any, ...]], _Value]
    floats: Callable[[], _Value] | None = None
    """Of positions and their differences, the same numbers in float32, made without converting a whole tile."""


_Held = _Value | _Lazy
_Index = tuple[Any, ...]  # Any: of _Value, or None along an axis of the tile

_INLINED = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # where the primitives that call a function hold it
_CALLS = {
    "pjit", "jit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "remat",
    "remat2", "checkpoint", "eval_jaxpr", "custom_lin",
}  # fmt: skip
_SAME = {
    "copy", "copy_p", "stop_gradient", "optimization_barrier", "name", "pvary", "reshard", "sharding_constraint",
    "mesh_cast",
}  # fmt: skip
_NATIVE = {
    "add", "sub", "mul", "div", "max", "min", "neg", "abs", "exp", "exp2", "log", "log2", "tanh", "sin", "cos", "sqrt",
    "rsqrt", "and", "or", "xor", "shift_left", "shift_right_logical", "shift_right_arithmetic", "eq", "ne", "lt", "le",
    "gt", "ge",
}  # fmt: skip
_ON_BITS = {
    "log1p", "expm1", "pow", "erfc", "erf_inv", "cbrt", "sinh", "atan", "atan2", "asin", "acos", "asinh", "acosh",
    "atanh", "nextafter", "round", "rem", "reduce_precision", "bitcast_convert_type",
}  # fmt: skip
"""What looks at a number's bits."""
_FOLDED: dict[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "max": np.maximum, "min": np.minimum, "neg": np.negative,
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert,
    "select_n": lambda which, *cases: cases[int(which)],
    "clamp": lambda low, x, high: np.minimum(np.maximum(x, low), high),
}  # fmt: skip
"""What is computed while tracing if all operands are known then: counters of loops and indices."""

_OF_POSITIONS = ("sub", "neg", "abs")
"""Exact in float32 too, of positions below 2^24: converted once for each row and column, and not for each pair."""

_MOST_STEPS = 64  # of a loop that is unrolled
_MOST_SUMMED = 64  # numbers of a table's axis that are summed one after the other
_PRIMES = (241, 251, 257, 263, 269, 271, 277, 281, 283, 293, 307, 311, 313, 317, 331, 337, 347, 349, 353, 359)
_ZERO = _Value(np.int32(0), "scalar")


def _join(kinds: Sequence[Kind]) -> Kind:
    some = set(kinds) - {"scalar"}
    return "tile" if len(some) > 1 else some.pop() if some else "scalar"


def _known(x: Any, dtype: DTypeLike) -> _Value:
    return _Value(np.asarray(x, dtype)[()], "scalar")


@contextlib.contextmanager
def _own_settings() -> Iterator[None]:
    """Traced and replayed alike under a user's 64-bit types, strict promotion and ranks that are not promoted."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class _Replay:
    """Evaluates jaxprs that were traced with `rows` and `columns` as the sizes of a tile of `shape`."""

    def __init__(self, shape: tuple[int, int], sizes: tuple[int, int], machine: Machine):
        self.shape, self.sizes, self.machine = shape, sizes, machine

    # ------------------------------------------------------------------------------------------------ values and kinds

    def lengths(self, kind: Kind) -> tuple[int, ...]:
        rows, columns = self.shape
        return {"scalar": (), "row": (rows,), "column": (columns,), "tile": (rows, columns)}[kind]

    def kind_of(self, shape: Sequence[int]) -> Kind:
        """Of an array of the trace that has no axes but the tile's."""
        axes = tuple(n for n in shape if n != 1)
        rows, columns = self.sizes
        kinds: dict[tuple[int, ...], Kind] = {
            (): "scalar", (rows,): "row", (columns,): "column", (rows, columns): "tile",
        }  # fmt: skip
        if axes not in kinds:
            raise NotLowered("cannot turn rows of a tile into columns")
        return kinds[axes]

    def spread(self, value: _Value, kind: Kind) -> Any:
        """The array of a value as one of a wider kind."""
        if value.kind == kind:
            return value.x
        if value.kind == "scalar":
            return self.machine.full(value.x, self.lengths(kind), kind)
        return self.machine.broadcast(value.x, 0 if value.kind == "row" else 1, self.shape)

    def apply(self, fn: Callable[..., Any], *values: _Value) -> _Value:
        """A function of arrays of one shape, of the narrowest kind that all values fit in."""
        kind = _join([v.kind for v in values])
        arrays = [self.spread(v, kind) for v in values]
        return _Value(fn(*(jnp.asarray(x) if isinstance(x, (np.generic, np.ndarray)) else x for x in arrays)), kind)

    def fold(self, name: str, *values: _Value) -> _Value:
        """One of the primitives that are computed at once if they can be."""
        if all(v.known for v in values):
            with np.errstate(all="ignore"):
                x = _FOLDED[name](*(v.x for v in values))
            compared = name in ("eq", "ne", "lt", "le", "gt", "ge")
            return _known(x, np.bool_ if compared else values[-1].dtype)
        return self.apply(functools.partial(_elementwise, name, {}), *values)

    # ------------------------------------------------------------------------------- arrays as functions of their index

    def make(self, shape: Sequence[int], dtype: DTypeLike, at: Callable[[_Index], _Value]) -> _Held:
        """An array from the value at an index: at once if it has the tile's axes alone."""
        index = tuple(None if n in self.sizes else _ZERO for n in shape)
        if all(n == 1 or n in self.sizes for n in shape):
            self.kind_of(shape)
            return at(index)
        return _Lazy(tuple(shape), np.dtype(dtype), at)

    def at(self, held: _Held, index: _Index) -> _Value:
        return held if isinstance(held, _Value) else held.at(index)

    def linear(self, index: Sequence[_Value], shape: Sequence[int]) -> _Value:
        """Where in a flat array an index stands."""
        place = _ZERO
        for x, n in zip(index, shape, strict=True):
            place = self.fold("add", self.fold("mul", place, _known(n, np.int32)), x)
        return place

    def split(self, place: _Value, shape: Sequence[int]) -> _Index:
        """The index of an array from where in the flat array it stands."""
        index: list[Any] = []
        for n in reversed(shape):
            if n == 1:
                index.append(_ZERO)
            elif place.known:
                index.append(_known(place.x % n, np.int32))
                place = _known(place.x // n, np.int32)
            else:
                index.append(self.apply(lambda x, n=n: lax.rem(x, jnp.full_like(x, n)), place))
                place = self.apply(lambda x, n=n: lax.div(x, jnp.full_like(x, n)), place)
        return tuple(reversed(index))

    def table(self, table: Table) -> _Held:
        """What is looked up at an index, when it is known."""

        def at(index: _Index) -> _Value:
            place = self.linear(index, table.shape)
            start = table.start
            if not (isinstance(start, int) and start == 0):
                start = _known(start, np.int32) if isinstance(start, int) else _Value(start, "scalar")
                place = self.fold("add", place, start)
            x = self.machine.take(table.ref, jnp.asarray(place.x, jnp.int32), place.kind)
            return _Value(_convert(x, np.dtype(table.dtype)), place.kind)

        return self.make(table.shape, table.dtype, at)

    def constant(self, x: Any) -> _Held:
        """An array that the function itself holds: looked up by comparing the index with each place."""
        array = np.asarray(x)
        if array.ndim == 0:
            return _known(array, array.dtype)
        if array.size > _MOST_SUMMED:
            raise NotLowered(f"cannot look up an array of {array.size} numbers that is no operand")

        def at(index: _Index) -> _Value:
            place = self.linear([_ZERO if i is None else i for i in index], array.shape)
            flat = array.reshape(-1)
            if place.known:
                return _known(flat[int(place.x)], array.dtype)
            value = _known(flat[0], array.dtype)
            for n, number in enumerate(flat[1:], 1):
                here = self.fold("eq", place, _known(n, np.int32))
                value = self.fold("select_n", here, value, _known(number, array.dtype))
            return value

        if set(array.shape) & set(self.sizes):
            raise NotLowered("cannot take an array of its own for a tile")
        return self.make(array.shape, array.dtype, at)

    # ------------------------------------------------------------------------------------------------------- jaxprs

    def run(
        self, jaxpr: Any, consts: Sequence[_Held], args: Sequence[_Held], wanted: Sequence[bool] | None = None
    ) -> list[Any]:
        """The results of a jaxpr (jax.extend.core.Jaxpr), None in the place of those that nobody wants."""
        wanted = [True] * len(jaxpr.outvars) if wanted is None else wanted
        needed = _needed(jaxpr, wanted)
        env: dict[Any, _Held] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

        def read(v: Any) -> Any:
            return _known(v.val, v.aval.dtype) if _is_literal(v) else env[v]

        for eqn, some in zip(jaxpr.eqns, needed, strict=True):
            if any(some):
                inputs = [read(v) if _is_literal(v) else env.get(v) for v in eqn.invars]
                results = self.evaluate(eqn, inputs, some)
                env.update((v, x) for v, x, n in zip(eqn.outvars, results, some, strict=True) if n)
        return [read(v) if w else None for v, w in zip(jaxpr.outvars, wanted, strict=True)]

    def closed(self, jaxpr: Any, args: Sequence[_Held], wanted: Sequence[bool] | None = None) -> list[Any]:
        """Of a jaxpr with or without its constants."""
        inner, consts = (jaxpr.jaxpr, jaxpr.consts) if hasattr(jaxpr, "jaxpr") else (jaxpr, ())
        return self.run(inner, [self.constant(c) for c in consts], args, wanted)

    def evaluate(self, eqn: Any, inputs: Sequence[Any], wanted: Sequence[bool]) -> list[Any]:
        name = eqn.primitive.name
        if name in _CALLS:
            inner = next(eqn.params[p] for p in _INLINED if p in eqn.params)
            return self.closed(inner, inputs, wanted)
        if name in _SAME:
            return list(inputs)
        if name == "split":
            return self.split_axis(inputs[0], eqn)
        if name in ("cond", "scan", "while"):
            return getattr(self, f"rule_{name}")(eqn, inputs, wanted)
        rule = getattr(self, f"rule_{name}", None)
        return [rule(eqn, *inputs) if rule else self.elementwise(eqn, inputs)]

    def elementwise(self, eqn: Any, inputs: Sequence[_Held]) -> _Held:
        name, params = eqn.primitive.name, eqn.params
        if name not in _ELEMENTWISE:
            raise NotLowered(f"has no {name.replace('_', ' ')}")
        out = eqn.outvars[0].aval
        shapes = [v.aval.shape for v in eqn.invars]
        floats = [x.floats for x in inputs if isinstance(x, _Lazy) and x.floats is not None]
        if len(floats) == len(inputs) and name == "convert_element_type" and out.dtype == jnp.float32:
            return floats[0]()
        if len(floats) == len(inputs) and name in _OF_POSITIONS:
            wide = functools.cache(
                lambda: self.apply(functools.partial(_elementwise, name, params), *(x() for x in floats))
            )
            here = lambda _: self.apply(
                functools.partial(_elementwise, name, params), *(self.at(x, (None, None)) for x in inputs)
            )
            return _Lazy(out.shape, out.dtype, here, wide)

        def at(index: _Index) -> _Value:
            values = [self.at(x, _narrowed(index, s)) for x, s in zip(inputs, shapes, strict=True)]
            if name in _FOLDED and all(v.known for v in values):
                return self.fold(name, *values)
            if name == "convert_element_type" and values[0].known:
                return _known(values[0].x, out.dtype)
            if name in _ON_BITS and all(v.kind == "scalar" for v in values):
                # Mosaic has no bits of scalars; of a tile of one number the compiler computes one
                values = [_Value(self.spread(v, "tile"), "tile") for v in values]
            return self.apply(functools.partial(_elementwise, name, params), *values)

        return self.make(out.shape, out.dtype, at)

    # ------------------------------------------------------------------------------------------------ moving numbers

    def rule_broadcast_in_dim(self, eqn: Any, x: _Held, *_: Any) -> _Held:
        out, dims, shape = eqn.outvars[0].aval, eqn.params["broadcast_dimensions"], eqn.invars[0].aval.shape
        if isinstance(x, _Lazy) and x.floats is not None and out.shape == self.sizes:
            return x._replace(shape=out.shape)
        return self.make(out.shape, out.dtype, lambda i: self.at(x, _narrowed([i[d] for d in dims], shape)))

    def rule_squeeze(self, eqn: Any, x: _Held) -> _Held:
        out, gone = eqn.outvars[0].aval, {d % len(eqn.invars[0].aval.shape) for d in eqn.params["dimensions"]}

        def at(index: _Index) -> _Value:
            rest = iter(index)
            return self.at(x, tuple(_ZERO if d in gone else next(rest) for d in range(len(index) + len(gone))))

        return self.make(out.shape, out.dtype, at)

    def rule_expand_dims(self, eqn: Any, x: _Held) -> _Held:
        out, new = eqn.outvars[0].aval, set(eqn.params["dimensions"])
        return self.make(out.shape, out.dtype, lambda i: self.at(x, tuple(y for d, y in enumerate(i) if d not in new)))

    def rule_reshape(self, eqn: Any, x: _Held, *_: Any) -> _Held:
        out, shape = eqn.outvars[0].aval, eqn.invars[0].aval.shape
        long = [d for d, n in enumerate(shape) if n != 1]
        kept = [d for d, n in enumerate(out.shape) if n != 1]
        if [shape[d] for d in long] == [out.shape[d] for d in kept]:
            source = dict(zip(long, kept, strict=True))
            return self.make(
                out.shape,
                out.dtype,
                lambda i: self.at(x, tuple(i[source[d]] if d in source else _ZERO for d in range(len(shape)))),
            )
        if set(self.sizes) & {*shape, *out.shape} or eqn.params.get("dimensions"):
            raise NotLowered("cannot reshape a tile")
        return self.make(out.shape, out.dtype, lambda i: self.at(x, self.split(self.linear(i, out.shape), shape)))

    def rule_transpose(self, eqn: Any, x: _Held) -> _Held:
        out, permutation = eqn.outvars[0].aval, eqn.params["permutation"]
        self._same_order(eqn.invars[0].aval.shape, out.shape)
        return self.make(
            out.shape, out.dtype, lambda i: self.at(x, tuple(i[permutation.index(d)] for d in range(len(i))))
        )

    def _same_order(self, shape: Sequence[int], out: Sequence[int]) -> None:
        if [n for n in shape if n in self.sizes] != [n for n in out if n in self.sizes]:
            raise NotLowered("cannot turn rows of a tile into columns")

    def rule_rev(self, eqn: Any, x: _Held) -> _Held:
        out, dims = eqn.outvars[0].aval, eqn.params["dimensions"]
        if any(out.shape[d] in self.sizes for d in dims):
            raise NotLowered("looks at other places of the tile than its own")
        turn = lambda d, i: self.fold("sub", _known(out.shape[d] - 1, np.int32), i) if d in dims else i
        return self.make(out.shape, out.dtype, lambda i: self.at(x, tuple(turn(d, y) for d, y in enumerate(i))))

    def rule_slice(self, eqn: Any, x: _Held) -> _Held:
        out, p = eqn.outvars[0].aval, eqn.params
        strides = p["strides"] or (1,) * len(out.shape)
        shape = eqn.invars[0].aval.shape
        self._whole(shape, out.shape)

        def move(d: int, i: Any) -> Any:
            if i is None:
                return None
            scaled = self.fold("mul", i, _known(strides[d], np.int32))
            return self.fold("add", scaled, _known(p["start_indices"][d], np.int32))

        return self.make(out.shape, out.dtype, lambda i: self.at(x, tuple(move(d, y) for d, y in enumerate(i))))

    def _whole(self, shape: Sequence[int], out: Sequence[int]) -> None:
        """Along the tile's axes nothing may be left out: where it would go, other numbers are."""
        if any(n in self.sizes and n != m for n, m in zip(shape, out, strict=True)):
            raise NotLowered("looks at other places of the tile than its own")

    def rule_dynamic_slice(self, eqn: Any, x: _Held, *starts: _Held) -> _Held:
        out, shape = eqn.outvars[0].aval, eqn.invars[0].aval.shape
        self._whole(shape, out.shape)
        starts = tuple(self.at(s, ()) for s in starts)

        def move(d: int, i: Any) -> Any:
            if i is None:
                return None
            return self.fold("add", self.inside(starts[d], shape[d] - out.shape[d]), i)

        return self.make(out.shape, out.dtype, lambda i: self.at(x, tuple(move(d, y) for d, y in enumerate(i))))

    def inside(self, index: _Value, last: int) -> _Value:
        """An index as int32, clipped to what an axis has."""
        index = self.convert(index, np.int32)
        return self.fold("min", self.fold("max", index, _ZERO), _known(last, np.int32))

    def convert(self, value: _Value, dtype: DTypeLike) -> _Value:
        if value.dtype == dtype:
            return value
        return _known(value.x, dtype) if value.known else self.apply(lambda x: _convert(x, np.dtype(dtype)), value)

    def rule_concatenate(self, eqn: Any, *parts: _Held) -> _Held:
        axis: int
        out, axis = eqn.outvars[0].aval, eqn.params["dimension"]
        if out.shape[axis] in self.sizes and len(parts) > 1:
            raise NotLowered("cannot put a tile together from parts")
        ends = list(itertools.accumulate(v.aval.shape[axis] for v in eqn.invars))

        def part(n: int, index: _Index) -> _Value:
            start = ends[n] - eqn.invars[n].aval.shape[axis]
            here = self.inside(self.fold("sub", index[axis], _known(start, np.int32)), ends[n] - start - 1)
            return self.at(parts[n], (*index[:axis], here, *index[axis + 1 :]))

        def at(index: _Index) -> _Value:
            place: Any = index[axis]
            if place is None:
                return self.at(next(iter(parts)), index)  # a tile's axis has one part
            if place.known:
                return part(next(n for n, end in enumerate(ends) if place.x < end), index)
            value = part(len(parts) - 1, index)
            for n in reversed(range(len(parts) - 1)):
                below = self.fold("lt", index[axis], _known(ends[n], np.int32))
                value = self.fold("select_n", below, value, part(n, index))
            return value

        return self.make(out.shape, out.dtype, at)

    def split_axis(self, x: _Held, eqn: Any) -> list[_Held]:
        axis, starts = eqn.params["axis"], [0, *itertools.accumulate(eqn.params["sizes"])]

        def one(start: int, out: Any) -> _Held:
            self._whole(eqn.invars[0].aval.shape, out.shape)
            move = lambda i: None if i is None else self.fold("add", i, _known(start, np.int32))
            return self.make(out.shape, out.dtype, lambda i: self.at(x, (*i[:axis], move(i[axis]), *i[axis + 1 :])))

        return [one(start, v.aval) for start, v in zip(starts, eqn.outvars, strict=False)]

    def rule_iota(self, eqn: Any, *_: Any) -> _Held:
        out, axis = eqn.outvars[0].aval, eqn.params["dimension"]
        if out.shape[axis] in self.sizes:
            raise NotLowered("takes positions from i and j, not from a tile's shape")
        return self.make(out.shape, out.dtype, lambda i: self.convert(i[axis], out.dtype))

    def rule_gather(self, eqn: Any, x: _Held, indices: _Held) -> _Held:
        """A look-up at computed indices: of the operand's axes some are found by index, others are in the result."""
        p, out, shape = eqn.params, eqn.outvars[0].aval, eqn.invars[0].aval.shape
        numbers, sizes, mode = p["dimension_numbers"], p["slice_sizes"], p["mode"]
        dtype = eqn.invars[1].aval.dtype
        gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
        window = [d for d in range(len(shape)) if d not in gone]
        batch = [d for d in range(len(out.shape)) if d not in numbers.offset_dims]
        if any(n in self.sizes and n != m for n, m in zip(shape, sizes, strict=True)):
            raise NotLowered("looks at other places of the tile than its own")
        filled = mode == lax.GatherScatterMode.FILL_OR_DROP

        def at(index: _Index) -> _Value:
            places = [index[d] for d in batch]
            start = lambda n: self.at(indices, (*places, _known(n, np.int32)))
            where: list[Any] = [None if shape[d] in self.sizes else _ZERO for d in range(len(shape))]
            valid: list[_Value] = []
            for n, d in enumerate(numbers.start_index_map):
                if shape[d] in self.sizes:
                    continue  # whole rows or columns begin at 0
                found, last = self.convert(start(n), np.int32), shape[d] - sizes[d]
                if last < 0:
                    raise NotLowered("cannot look up a table without entries")
                where[d] = self.inside(found, last)
                if filled:
                    valid.append(self.fold("ge", found, _ZERO))
                    valid.append(self.fold("le", found, _known(last, np.int32)))
            pairs = zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
            for d, axis in pairs:
                where[d] = places[axis]
            for d, o in zip(window, numbers.offset_dims, strict=True):
                where[d] = None if index[o] is None else self.fold("add", where[d], index[o])
            value = self.at(x, tuple(where))
            seen = functools.reduce(functools.partial(self.fold, "and"), valid) if valid else _known(True, np.bool_)
            if seen.known and seen.x:
                return value
            return self.fold("select_n", seen, _known(_fill(p.get("fill_value"), out.dtype), out.dtype), value)

        del dtype
        return self.make(out.shape, out.dtype, at)

    # ---------------------------------------------------------------------------------------------------- reductions

    def _reduce(self, eqn: Any, x: _Held, fold: str) -> _Held:
        shape, axes, out = eqn.invars[0].aval.shape, eqn.params["axes"], eqn.outvars[0].aval
        across = [shape[d] for d in axes if shape[d] in self.sizes]
        if across and (fold != "add" or across != [self.sizes[1]]):
            what = {"add": "sums", "max": "maxima", "min": "minima"}.get(fold, "results")
            over = "over rows" if fold == "add" else "over a tile"
            raise NotLowered(f"has no {what} {over}")
        steps = [range(shape[d]) if shape[d] not in self.sizes else (None,) for d in axes]
        if math.prod(map(len, steps)) > _MOST_SUMMED:
            raise NotLowered(f"takes sums of up to {_MOST_SUMMED} numbers of a table")

        def at(index: _Index) -> _Value:
            values = []
            for place in itertools.product(*steps):
                rest, here = iter(index), dict(zip(axes, place, strict=True))
                where = tuple(
                    (None if here[d] is None else _known(here[d], np.int32)) if d in here else next(rest)
                    for d in range(len(shape))
                )
                values.append(self.at(x, where))
            value = functools.reduce(functools.partial(self.fold, fold), values)
            return self.row_sum(value) if across else value

        return self.make(out.shape, out.dtype, at)

    def row_sum(self, value: _Value) -> _Value:
        """A number for each row; of what is the same in all columns by a product."""
        if value.kind in ("scalar", "row"):
            count = _known(self.shape[1], value.dtype)
            return self.fold("mul", value, count)
        return _Value(self.machine.row_sum(self.spread(value, "tile")), "row")

    def rule_reduce_sum(self, eqn: Any, x: _Held) -> _Held:
        return self._reduce(eqn, x, "add")

    def rule_reduce_max(self, eqn: Any, x: _Held) -> _Held:
        return self._reduce(eqn, x, "max")

    def rule_reduce_min(self, eqn: Any, x: _Held) -> _Held:
        return self._reduce(eqn, x, "min")

    def rule_reduce_and(self, eqn: Any, x: _Held) -> _Held:
        return self._reduce(eqn, x, "and")

    def rule_reduce_or(self, eqn: Any, x: _Held) -> _Held:
        return self._reduce(eqn, x, "or")

    # ------------------------------------------------------------------------------------------------- control flow

    def rule_cond(self, eqn: Any, inputs: Sequence[_Held], wanted: Sequence[bool]) -> list[Any]:
        """All branches, and a choice of their results: they are functions without effects."""
        which, branches = self.at(inputs[0], ()), eqn.params["branches"]
        if which.known:
            return self.closed(branches[int(np.clip(which.x, 0, len(branches) - 1))], inputs[1:], wanted)
        results = [self.closed(b, inputs[1:], wanted) for b in branches]
        which = self.convert(which, np.int32)

        def choose(n: int) -> _Held:
            out = eqn.outvars[n].aval

            def at(index: _Index) -> _Value:
                value = self.at(results[-1][n], index)
                for k in reversed(range(len(branches) - 1)):
                    value = self.fold(
                        "select_n", self.fold("le", which, _known(k, np.int32)), value, self.at(results[k][n], index)
                    )
                return value

            return self.make(out.shape, out.dtype, at)

        return [choose(n) if w else None for n, w in enumerate(wanted)]

    def rule_scan(self, eqn: Any, inputs: Sequence[_Held], wanted: Sequence[bool]) -> list[Any]:
        del wanted  # of a carry later steps want what nobody else does
        p, length = eqn.params, eqn.params["length"]
        if length > _MOST_STEPS:
            raise NotLowered(f"takes loops of up to {_MOST_STEPS} steps, not {length}")
        consts, carried = _scan_counts(p)
        first, held = consts, consts + carried
        carry, stacks = list(inputs[first:held]), []
        order = range(length - 1, -1, -1) if p["reverse"] else range(length)
        inner = getattr(p["jaxpr"], "jaxpr", p["jaxpr"]).invars[held:]

        def entry(x: _Held, v: Any, n: int) -> _Held:
            return self.make(v.aval.shape, v.aval.dtype, lambda i: self.at(x, (_known(n, np.int32), *i)))

        for n in order:
            slices = [entry(x, v, n) for x, v in zip(inputs[held:], inner, strict=True)]
            results = self.closed(p["jaxpr"], [*inputs[:first], *carry, *slices])
            carry, stack = results[:carried], results[carried:]
            stacks.append(stack)
        stacks = stacks[::-1] if p["reverse"] else stacks
        outs = eqn.outvars[carried:]
        return [*carry, *(self._stacked([s[n] for s in stacks], v.aval) for n, v in enumerate(outs))]

    def _stacked(self, entries: Sequence[_Held], out: Any) -> _Held:
        def at(index: _Index) -> _Value:
            if index[0].known:
                return self.at(entries[int(index[0].x)], index[1:])
            value = self.at(entries[0], index[1:])
            for n, entry in enumerate(entries[1:], 1):
                here = self.fold("eq", index[0], _known(n, np.int32))
                value = self.fold("select_n", here, value, self.at(entry, index[1:]))
            return value

        return self.make(out.shape, out.dtype, at)

    def rule_while(self, eqn: Any, inputs: Sequence[_Held], wanted: Sequence[bool]) -> list[Any]:
        del wanted
        p = eqn.params
        a, b = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
        carry = list(inputs[b:])
        for _ in range(_MOST_STEPS + 1):
            (more,) = self.closed(p["cond_jaxpr"], [*inputs[:a], *carry])
            if not (isinstance(more, _Value) and more.known):
                raise NotLowered("has no loops whose length depends on values")
            if not more.x:
                return carry
            carry = self.closed(p["body_jaxpr"], [*inputs[a:b], *carry])
        raise NotLowered(f"takes loops of up to {_MOST_STEPS} steps")


def _scan_counts(params: dict[str, Any]) -> tuple[int, int]:
    """How many constants and carries a scan has, which jax 0.12 holds as trees."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(consts), len(carry)


def _is_literal(v: Any) -> bool:
    return isinstance(v, jax.extend.core.Literal)


def _needed(jaxpr: Any, wanted: Sequence[bool]) -> list[list[bool]]:
    """Of each equation, which results something that is wanted needs."""
    live = {v for v, w in zip(jaxpr.outvars, wanted, strict=True) if w and not _is_literal(v)}
    needed = []
    for eqn in reversed(jaxpr.eqns):
        some = [v in live for v in eqn.outvars]
        needed.append(some)
        if any(some):
            live |= {v for v in eqn.invars if not _is_literal(v)}
    return needed[::-1]


def _narrowed(index: Sequence[Any], shape: Sequence[int]) -> _Index:
    """The index of an array that is broadcast: 0 along its axes of length 1; of a scalar there is none."""
    return tuple(_ZERO if n == 1 else i for i, n in zip(index, shape, strict=False)) if shape else ()


def _fill(value: Any, dtype: np.dtype) -> Any:
    """What a look-up outside an array gives, unless it was said."""
    if value is not None:
        return value
    if jnp.issubdtype(dtype, jnp.inexact):
        return np.nan
    if dtype == np.bool_:
        return True
    return np.iinfo(dtype).min if jnp.issubdtype(dtype, jnp.signedinteger) else np.iinfo(dtype).max


# ---------------------------------------------------------------------------------------- one number after the other


def _convert(x: Any, dtype: np.dtype) -> Any:
    """A number in another dtype: a boolean says whether it is 0, since Mosaic has no other way to one."""
    if x.dtype == dtype:
        return x
    if dtype == np.bool_:
        return x != jnp.zeros_like(x)
    return lax.convert_element_type(x, dtype)


def _select(which: Any, *cases: Any) -> Any:
    """Mosaic chooses between two arrays, and by a boolean."""
    if len(cases) == 2:
        return lax.select_n(_convert(which, np.dtype(np.bool_)), *cases)
    value = cases[-1]
    for n in reversed(range(len(cases) - 1)):
        value = lax.select_n(which <= n, value, cases[n])
    return value


def _not(x: Any) -> Any:
    return x ^ jnp.full_like(
        x, True if x.dtype == np.bool_ else -1 if jnp.issubdtype(x.dtype, jnp.signedinteger) else np.iinfo(x.dtype).max
    )


def _round(x: Any, rounding_method: lax.RoundingMethod) -> Any:
    away = rounding_method == lax.RoundingMethod.AWAY_FROM_ZERO
    return rewrites.round_away(x) if away else lax.round(x, rounding_method)


def _rem(x: Any, y: Any) -> Any:
    return rewrites.remainder(x, y) if jnp.issubdtype(x.dtype, jnp.floating) else lax.rem(x, y)


_PLAIN: dict[str, Callable[..., Any]] = {
    "not": lambda x: _not(x),
    "add_any": lambda x, y: x + y,
    "square": lambda x: x * x,
    "one_minus_square": lambda x: (1 + x) * (1 - x),
    "sign": rewrites.sign,
    "rem": _rem,
    "round": _round,
    "clamp": lambda low, x, high: jnp.minimum(jnp.maximum(x, low), high),
    "integer_pow": rewrites.integer_power,
    "select_n": _select,
    "population_count": rewrites.population_count,
    "clz": rewrites.leading_zeros,
    "reduce_precision": rewrites.reduce_precision,
    "convert_element_type": lambda x, new_dtype, **_: _convert(x, np.dtype(new_dtype)),
    "bitcast_convert_type": lambda x, new_dtype: lax.bitcast_convert_type(x, new_dtype),
    **rewrites.REWRITES,
}
_ELEMENTWISE = {*_NATIVE, *_PLAIN}
_ANY_DTYPE = {"convert_element_type", "bitcast_convert_type", "select_n", "eq", "ne", "lt", "le", "gt", "ge"}
_LAX = {"and": lax.bitwise_and, "or": lax.bitwise_or, "xor": lax.bitwise_xor}


def _elementwise(name: str, params: dict[str, Any], *xs: Any) -> Any:
    """A primitive of arrays of one shape, with numbers of 16 bits computed in float32 as XLA does."""
    if name in _PLAIN:
        accepted = {k: v for k, v in params.items() if k != "accuracy"}
        fn = functools.partial(_PLAIN[name], **accepted)
    else:
        fn = _LAX.get(name) or getattr(lax, name)
    narrow = xs[0].dtype
    if name in _ANY_DTYPE or not jnp.issubdtype(narrow, jnp.floating) or narrow == np.float32:
        return fn(*xs)
    wide = (x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x for x in xs)
    result = fn(*wide)
    return result.astype(narrow) if jnp.issubdtype(result.dtype, jnp.floating) else result


# ------------------------------------------------------------------------------------------------------------- entry


def _is_argument(x: Any) -> bool:
    return isinstance(x, (Row, Column, Table))


def _is_traced(x: Any) -> bool:
    return _is_argument(x) or (hasattr(x, "shape") and hasattr(x, "dtype"))


def _stand_ins(leaves: Sequence[Any]) -> tuple[int, int]:
    """Sizes of rows and columns in the trace: no table has an axis as long."""
    taken = {n for x in leaves if isinstance(x, Table) for n in x.shape}
    rows, columns = itertools.islice((n for n in _PRIMES if n not in taken), 2)
    return rows, columns


def lowered(fn: Callable[..., Any], shape: tuple[int, int], machine: Machine) -> Callable[..., Any]:
    """fn, a function of a tile `[rows, columns]`, in what a Mosaic GPU kernel lowers.

    It is called with pytrees of scalars, `Row`, `Column`, whole tiles and `Table`; fn gets arrays `[]`, `[rows, 1]`,
    `[1, columns]`, `[rows, columns]` and of the table's shape.  Python's numbers, and all that is no array, reach fn as
    they are.  Its results come back in the same tags.  It may call `jax.vjp`: sums over columns, to `[rows, 1]`, are a
    machine's `row_sum`.

    Raises:
      NotLowered: fn does what no kernel evaluates.
    """

    def run(*args: Any) -> Any:
        leaves, tree = jax.tree.flatten(args, is_leaf=_is_argument)
        traced = [n for n, x in enumerate(leaves) if _is_traced(x)]
        sizes = _stand_ins(leaves)
        replay = _Replay(shape, sizes, machine)
        inputs = [_input(replay, leaves[n]) for n in traced]

        def flat(*xs: Any) -> Any:
            filled = list(leaves)
            for n, x in zip(traced, xs, strict=True):
                filled[n] = x
            return fn(*jax.tree.unflatten(tree, filled))

        with _own_settings():
            closed, out = jax.make_jaxpr(flat, return_shape=True)(*(x for x, _ in inputs))
            consts = [replay.constant(c) for c in closed.consts]
            results = replay.run(closed.jaxpr, consts, [x for _, x in inputs])
            shapes = [v.aval.shape for v in closed.jaxpr.outvars]
            results = [_output(replay, x, s) for x, s in zip(results, shapes, strict=True)]
        return jax.tree.unflatten(jax.tree.structure(out), results)

    return run


def _input(replay: _Replay, x: Any) -> tuple[jax.ShapeDtypeStruct, _Held]:
    """An argument as the function is traced with it, and as it is replayed."""
    rows, columns = replay.sizes
    if isinstance(x, Table):
        return jax.ShapeDtypeStruct(x.shape, x.dtype), replay.table(x)
    kind: Kind = "row" if isinstance(x, Row) else "column" if isinstance(x, Column) else "tile" if x.ndim else "scalar"
    array = x.x if isinstance(x, (Row, Column)) else x
    if callable(array):
        shape = (rows, 1) if kind == "row" else (1, columns)
        position = functools.cache(lambda: _Value(array(), kind))
        floats = functools.cache(lambda: replay.convert(position(), jnp.float32))
        return jax.ShapeDtypeStruct(shape, jnp.int32), _Lazy(shape, np.dtype(np.int32), lambda _: position(), floats)
    if array.shape != replay.lengths(kind):
        raise ValueError(f"a {kind} of a tile {replay.shape} has shape {replay.lengths(kind)}, not {array.shape}")
    shape = {"scalar": (), "row": (rows, 1), "column": (1, columns), "tile": (rows, columns)}[kind]
    return jax.ShapeDtypeStruct(shape, array.dtype), _Value(array, kind)


def _output(replay: _Replay, x: _Held, shape: tuple[int, ...]) -> Any:
    if isinstance(x, _Lazy):
        if x.floats is None:
            raise NotLowered("gives arrays of a tile's shape")
        x = x.at(())
    kind = replay.kind_of(shape)
    if _join([x.kind, kind]) != kind:
        raise NotLowered("has no bits of scalars")
    array = replay.spread(x, kind)
    array = jnp.asarray(array) if x.known else array
    return Row(array) if kind == "row" else Column(array) if kind == "column" else array


def why_not(fn: Callable[..., Any], shape: tuple[int, int], *args: Any) -> str | None:
    """Why no GPU kernel evaluates fn, None if one can; a clause whose subject is the kernel.

    Arguments are those of `lowered`, with `jax.ShapeDtypeStruct` in the place of arrays and tables without a reference.
    Nothing is computed and Mosaic is not needed.
    """
    leaves, tree = jax.tree.flatten(args, is_leaf=_is_argument)
    abstract = [n for n, x in enumerate(leaves) if _is_traced(x)]

    def dry(*xs: Any) -> Any:
        filled = list(leaves)
        for n, x in zip(abstract, xs, strict=True):
            filled[n] = leaves[n]._replace(ref=x) if isinstance(leaves[n], Table) else x
        return lowered(fn, shape, Plain())(*jax.tree.unflatten(tree, filled))

    flat = lambda t: jax.ShapeDtypeStruct((max(math.prod(t.shape), 1),), t.dtype)
    try:
        with _own_settings():
            jax.eval_shape(dry, *(flat(leaves[n]) if isinstance(leaves[n], Table) else leaves[n] for n in abstract))
    except NotLowered as reason:
        return str(reason)
    return None
