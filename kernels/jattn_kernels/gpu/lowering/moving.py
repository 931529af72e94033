"""Rules of primitives that move numbers: what stands at an index of the result stood at another index."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jattn_kernels.gpu.lowering.arrays import ZERO, Evaluated, Lazy, TileArithmetic, Value, ValueIndex, known, narrowed
from jattn_kernels.gpu.lowering.equations import Abstract, Equation
from jattn_kernels.gpu.lowering.tagged import NotLowered


def broadcast_in_dim(tile: TileArithmetic, eqn: Equation, x: Evaluated, *_: Evaluated) -> Evaluated:
    out, dims, shape = eqn.outvars[0].aval, eqn.params["broadcast_dimensions"], eqn.invars[0].aval.shape
    if isinstance(x, Lazy) and x.floats is not None and out.shape == tile.sizes:
        return x._replace(shape=out.shape)
    return tile.make(out.shape, out.dtype, lambda i: tile.at(x, narrowed([i[d] for d in dims], shape)))


def squeeze(tile: TileArithmetic, eqn: Equation, x: Evaluated) -> Evaluated:
    out, gone = eqn.outvars[0].aval, {d % len(eqn.invars[0].aval.shape) for d in eqn.params["dimensions"]}

    def at(index: ValueIndex) -> Value:
        rest = iter(index)
        return tile.at(x, tuple(ZERO if d in gone else next(rest) for d in range(len(index) + len(gone))))

    return tile.make(out.shape, out.dtype, at)


def expand_dims(tile: TileArithmetic, eqn: Equation, x: Evaluated) -> Evaluated:
    out, new = eqn.outvars[0].aval, set(eqn.params["dimensions"])
    return tile.make(out.shape, out.dtype, lambda i: tile.at(x, tuple(y for d, y in enumerate(i) if d not in new)))


def reshape(tile: TileArithmetic, eqn: Equation, x: Evaluated, *_: Evaluated) -> Evaluated:
    out, shape = eqn.outvars[0].aval, eqn.invars[0].aval.shape
    long = [d for d, n in enumerate(shape) if n != 1]
    kept = [d for d, n in enumerate(out.shape) if n != 1]
    if [shape[d] for d in long] == [out.shape[d] for d in kept]:
        source = dict(zip(long, kept, strict=True))
        return tile.make(
            out.shape,
            out.dtype,
            lambda i: tile.at(x, tuple(i[source[d]] if d in source else ZERO for d in range(len(shape)))),
        )
    if set(tile.sizes) & {*shape, *out.shape} or eqn.params.get("dimensions"):
        raise NotLowered("cannot reshape a tile")
    return tile.make(out.shape, out.dtype, lambda i: tile.at(x, tile.split(tile.linear(i, out.shape), shape)))


def transpose(tile: TileArithmetic, eqn: Equation, x: Evaluated) -> Evaluated:
    out, permutation = eqn.outvars[0].aval, eqn.params["permutation"]
    _same_order(tile, eqn.invars[0].aval.shape, out.shape)
    return tile.make(out.shape, out.dtype, lambda i: tile.at(x, tuple(i[permutation.index(d)] for d in range(len(i)))))


def _same_order(tile: TileArithmetic, shape: Sequence[int], out: Sequence[int]) -> None:
    if [n for n in shape if n in tile.sizes] != [n for n in out if n in tile.sizes]:
        raise NotLowered("cannot turn rows of a tile into columns")


def rev(tile: TileArithmetic, eqn: Equation, x: Evaluated) -> Evaluated:
    out, dims = eqn.outvars[0].aval, eqn.params["dimensions"]
    if any(out.shape[d] in tile.sizes for d in dims):
        raise NotLowered("looks at other places of the tile than its own")
    turn = lambda d, i: tile.fold("sub", known(out.shape[d] - 1, np.int32), i) if d in dims else i
    return tile.make(out.shape, out.dtype, lambda i: tile.at(x, tuple(turn(d, y) for d, y in enumerate(i))))


def _slice(tile: TileArithmetic, eqn: Equation, x: Evaluated) -> Evaluated:
    out, p = eqn.outvars[0].aval, eqn.params
    strides = p["strides"] or (1,) * len(out.shape)
    shape = eqn.invars[0].aval.shape
    tile.whole(shape, out.shape)

    def move(d: int, i: Value | None) -> Value | None:
        if i is None:
            return None
        scaled = tile.fold("mul", i, known(strides[d], np.int32))
        return tile.fold("add", scaled, known(p["start_indices"][d], np.int32))

    return tile.make(out.shape, out.dtype, lambda i: tile.at(x, tuple(move(d, y) for d, y in enumerate(i))))


def concatenate(tile: TileArithmetic, eqn: Equation, *parts: Evaluated) -> Evaluated:
    axis: int
    out, axis = eqn.outvars[0].aval, eqn.params["dimension"]
    if out.shape[axis] in tile.sizes and len(parts) > 1:
        raise NotLowered("cannot put a tile together from parts")
    ends = list(itertools.accumulate(v.aval.shape[axis] for v in eqn.invars))

    def part(n: int, index: ValueIndex) -> Value:
        start = ends[n] - eqn.invars[n].aval.shape[axis]
        here = tile.inside(tile.fold("sub", index[axis], known(start, np.int32)), ends[n] - start - 1)
        return tile.at(parts[n], (*index[:axis], here, *index[axis + 1 :]))

    def at(index: ValueIndex) -> Value:
        place: Any = index[axis]
        if place is None:
            return tile.at(next(iter(parts)), index)  # a tile's axis has one part
        if place.known:
            return part(next(n for n, end in enumerate(ends) if place.x < end), index)
        value = part(len(parts) - 1, index)
        for n in reversed(range(len(parts) - 1)):
            below = tile.fold("lt", index[axis], known(ends[n], np.int32))
            value = tile.fold("select_n", below, value, part(n, index))
        return value

    return tile.make(out.shape, out.dtype, at)


def split(tile: TileArithmetic, eqn: Equation, x: Evaluated) -> list[Evaluated]:
    axis, starts = eqn.params["axis"], [0, *itertools.accumulate(eqn.params["sizes"])]

    def one(start: int, out: Abstract) -> Evaluated:
        tile.whole(eqn.invars[0].aval.shape, out.shape)
        move = lambda i: None if i is None else tile.fold("add", i, known(start, np.int32))
        return tile.make(out.shape, out.dtype, lambda i: tile.at(x, (*i[:axis], move(i[axis]), *i[axis + 1 :])))

    return [one(start, v.aval) for start, v in zip(starts, eqn.outvars, strict=False)]


def iota(tile: TileArithmetic, eqn: Equation, *_: Evaluated) -> Evaluated:
    out, axis = eqn.outvars[0].aval, eqn.params["dimension"]
    if out.shape[axis] in tile.sizes:
        raise NotLowered("takes positions from i and j, not from a tile's shape")
    return tile.make(out.shape, out.dtype, lambda i: tile.convert(i[axis], out.dtype))


RULES: dict[str, Callable[..., Evaluated]] = {
    "broadcast_in_dim": broadcast_in_dim,
    "squeeze": squeeze,
    "expand_dims": expand_dims,
    "reshape": reshape,
    "transpose": transpose,
    "rev": rev,
    "slice": _slice,
    "concatenate": concatenate,
    "iota": iota,
}
"""`rule(tile, equation, *inputs)` of primitives with one result."""
