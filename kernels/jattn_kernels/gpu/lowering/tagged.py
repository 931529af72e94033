"""What goes into a lowered function and comes out, tagged with what it depends on, and the machine that it runs on."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike

Kind = Literal["scalar", "row", "column", "tile"]
"""What a value depends on: nothing, its row, its column, both.  `row`: a number for each row, `[rows]`."""


class NotLowered(NotImplementedError):
    """What no GPU kernel evaluates; the message is a clause whose subject is the kernel."""


class Row(NamedTuple):
    """A number for each row of a tile, `[rows]`; in the traced function `[rows, 1]`."""

    x: Any  # jax.Array; what makes one of int32, if it is asked for; jax.ShapeDtypeStruct in a dry run


class Column(NamedTuple):
    """A number for each column of a tile, `[columns]`; in the traced function `[1, columns]`."""

    x: Any  # as the field of `Row`


class Table(NamedTuple):
    """An array in memory of which numbers are looked up: to the traced function an array of this shape and dtype."""

    ref: Any  # a flat reference in shared or global memory; None in a dry run
    shape: tuple[int, ...]
    dtype: DTypeLike  # what the function sees; in memory booleans are int8
    start: Any = 0  # where in `ref` the array begins, an int or an int32 scalar


class Machine(Protocol):
    """What the replay asks of the machine that it runs on."""

    def full(self, value: ArrayLike, shape: tuple[int, ...], kind: Kind) -> jax.Array:
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

    def take(self, ref: jax.Ref, index: jax.Array, kind: Kind) -> jax.Array:
        """The numbers of a flat reference at int32 indices, all of which are inside; in the reference's dtype."""
        ...


class Plain:
    """The machine of plain arrays: a dry run's, and the simulator's."""

    def full(self, value: ArrayLike, shape: tuple[int, ...], kind: Kind) -> jax.Array:
        del kind
        return jnp.full(shape, value)

    def broadcast(self, x: jax.Array, axis: int, shape: tuple[int, int]) -> jax.Array:
        return lax.broadcast_in_dim(x, shape, (axis,))

    def row_sum(self, x: jax.Array) -> jax.Array:
        return jnp.sum(x, 1)

    def take(self, ref: jax.Ref, index: jax.Array, kind: Kind) -> jax.Array:
        del kind
        return ref[...][index]
