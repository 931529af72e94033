"""Whether what is computed of a tile is elementwise, as its jaxpr tells."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

# Primes, so that an axis of this length is one of the tile's; nothing of this size is made.
ROWS, COLUMNS = 1009, 2003
_ACROSS = ("reduce_", "arg", "cum", "sort", "rev", "fft", "conv_", "top_k", "approx_top_k", "select_and_")
"""What primitives that mix the entries of an axis begin with."""
_PARTS = ("slice", "dynamic_slice", "gather", "pad", "concatenate", "split")
"""What primitives that take some entries of an axis, or put others beside them, begin with."""


def across(jaxpr: Jaxpr) -> str:
    """The first primitive that looks along an axis of the tile, "" if there is none."""
    for equation in jaxpr.eqns:
        if _looks_along(equation):
            return equation.primitive.name
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns") and (mixes := across(inner)):
                return mixes
    return ""


def across_rows(jaxpr: Jaxpr) -> str:
    """The first primitive that adds up, sorts or the like the entries of several rows of the tile, "" if there is none.

    It says nothing of those that may as well look along each row by itself, a gather say.
    """
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        shape = _shape(equation.invars[0]) if equation.invars else ()
        axes = _axes(params, ()) if name.startswith(_ACROSS) else ()
        if name == "dot_general":
            axes = params["dimension_numbers"][0][0]
        if any(shape[x] and shape[x] % ROWS == 0 for x in axes):  # of rows that were joined too
            return name
        # a loop that runs until all rows are done is each row's own
        inner = {x: y for x, y in params.items() if x != "cond_jaxpr"}
        for value in jax.tree.leaves(list(inner.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            within = getattr(value, "jaxpr", value)
            if hasattr(within, "eqns") and (mixes := across_rows(within)):
                return mixes
    return ""


def _axes(params: Mapping[str, Any], otherwise: Sequence[int]) -> Sequence[int]:
    """The axes of its first argument that an equation looks along."""
    axes = next((params[x] for x in ("axes", "axis", "dimension", "dimensions") if x in params), otherwise)
    return [int(x) for x in ((axes,) if isinstance(axes, int) else axes)]


def _looks_along(equation: JaxprEqn) -> bool:
    """Whether an entry of the result depends on where in the tile it lies, or on others of its row or column."""
    name, params = equation.primitive.name, equation.params
    shape, *others = [_shape(x) for x in equation.invars] or [()]
    result = _shape(equation.outvars[0]) if equation.outvars else ()
    of_tile = lambda shape, axes: any(shape[x] in (ROWS, COLUMNS) for x in axes)
    if name == "iota":  # it counts from 0 in every tile
        return of_tile(params["shape"], [params["dimension"]])
    if name == "dot_general":
        (left, right), _ = params["dimension_numbers"]
        return of_tile(shape, left) or of_tile(others[0], right)
    if name in ("reshape", "transpose"):
        return bool(_lengths(shape)) and bool(_lengths(result)) and _lengths(shape) != _lengths(result)
    if name == "scan":  # over rows or columns, with something that is carried from one to the next
        inner = params["jaxpr"]
        rows = [x for x, y in zip((shape, *others), map(_shape, inner.jaxpr.invars), strict=True) if x != y]
        carries = any(_shape(x) == _shape(y) for x, y in zip(equation.outvars, inner.jaxpr.outvars, strict=True))
        return carries and any(of_tile(x, [0]) for x in rows)
    if name.startswith(("scatter", "dynamic_update_slice")):
        return any(map(_lengths, (shape, *others)))
    if name.startswith(_PARTS):
        if name == "concatenate":
            return any(of_tile(x, [params["dimension"]]) for x in (shape, *others))
        if name == "gather":
            return any(n in (ROWS, COLUMNS) and m != n for n, m in zip(shape, params["slice_sizes"], strict=True))
        return _lengths(shape) != _lengths(result)
    if name.startswith(_ACROSS) and name != "reduce_precision":
        return of_tile(shape, _axes(params, range(len(shape))))
    return False


def _shape(x: Any) -> tuple[int, ...]:
    """The shape of a variable of a jaxpr or of a number in it; what has none, a token say, has no axis of the tile."""
    return tuple(getattr(x.aval, "shape", ()))


def _lengths(shape: Sequence[int]) -> list[int]:
    """The axes of the tile that a shape has, in order."""
    return [n for n in shape if n in (ROWS, COLUMNS)]


def text_of(traced: ClosedJaxpr, size: tuple[int, int]) -> str:
    """What is computed of a tile, in words that do not say how large it is."""
    text, (rows, columns) = re.sub(r"0x[0-9a-f]+", "", str(traced.jaxpr)), size
    for n, name in ((rows, "t"), (columns, "s"), (rows * columns, "ts")):
        text = re.sub(rf"(?<![.\w]){n}(?![.:\w])", name, text)  # in shapes alone: 2003.0 and 2003:i32 are numbers
    return text + str([x for x in map(np.shape, traced.consts) if set(size) & set(x)])
