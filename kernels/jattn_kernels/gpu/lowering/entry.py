"""A function of a tile, traced as every backend traces it and tileed on a machine."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jattn_kernels.gpu.lowering import jaxprs
from jattn_kernels.gpu.lowering.arrays import Evaluated, Lazy, TileArithmetic, Value, join
from jattn_kernels.gpu.lowering.tagged import Column, Kind, Machine, NotLowered, Plain, Row, Table

_PRIMES = (241, 251, 257, 263, 269, 271, 277, 281, 283, 293, 307, 311, 313, 317, 331, 337, 347, 349, 353, 359)


@contextlib.contextmanager
def _own_settings() -> Iterator[None]:
    """Traced and tileed alike under a user's 64-bit types, strict promotion and ranks that are not promoted."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


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
        tile = TileArithmetic(shape, sizes, machine)
        inputs = [_input(tile, leaves[n]) for n in traced]

        def flat(*xs: Any) -> Any:
            filled = list(leaves)
            for n, x in zip(traced, xs, strict=True):
                filled[n] = x
            return fn(*jax.tree.unflatten(tree, filled))

        with _own_settings():
            closed, out = jax.make_jaxpr(flat, return_shape=True)(*(x for x, _ in inputs))
            consts = [tile.constant(c) for c in closed.consts]
            results = jaxprs.run(tile, closed.jaxpr, consts, [x for _, x in inputs])
            shapes = [v.aval.shape for v in closed.jaxpr.outvars]
            results = [_output(tile, x, s) for x, s in zip(results, shapes, strict=True)]
        return jax.tree.unflatten(jax.tree.structure(out), results)

    return run


def _input(tile: TileArithmetic, x: Any) -> tuple[jax.ShapeDtypeStruct, Evaluated]:
    """An argument as the function is traced with it, and as it is tileed."""
    rows, columns = tile.sizes
    if isinstance(x, Table):
        return jax.ShapeDtypeStruct(x.shape, x.dtype), tile.table(x)
    kind: Kind = "row" if isinstance(x, Row) else "column" if isinstance(x, Column) else "tile" if x.ndim else "scalar"
    array = x.x if isinstance(x, (Row, Column)) else x
    if callable(array):
        shape = (rows, 1) if kind == "row" else (1, columns)
        position = functools.cache(lambda: Value(array(), kind))
        floats = functools.cache(lambda: tile.convert(position(), jnp.float32))
        return jax.ShapeDtypeStruct(shape, jnp.int32), Lazy(shape, np.dtype(np.int32), lambda _: position(), floats)
    if array.shape != tile.lengths(kind):
        raise ValueError(f"a {kind} of a tile {tile.shape} has shape {tile.lengths(kind)}, not {array.shape}")
    shape = {"scalar": (), "row": (rows, 1), "column": (1, columns), "tile": (rows, columns)}[kind]
    return jax.ShapeDtypeStruct(shape, array.dtype), Value(array, kind)


def _output(tile: TileArithmetic, x: Evaluated, shape: tuple[int, ...]) -> Any:
    if isinstance(x, Lazy):
        if x.floats is None:
            raise NotLowered("gives arrays of a tile's shape")
        x = x.at(())
    kind = tile.kind_of(shape)
    if join([x.kind, kind]) != kind:
        raise NotLowered("has no bits of scalars")
    array = tile.spread(x, kind)
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
