"""Where in a call a rectangle of scores stands."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

Index = int | jax.Array
"""A number known while tracing, or one that a kernel reads or counts."""


class Place(NamedTuple):
    """A rectangle of one head's scores: its place in the grid step's blocks (`row` static) and its positions."""

    b: Index
    h: Index
    row: int
    rows: int
    column: Index
    columns: int
    i: Index
    j: Index
    transposed: bool  # whether keys stand along rows

    @property
    def shape(self) -> tuple[int, int]:
        return (self.columns, self.rows) if self.transposed else (self.rows, self.columns)

    def positions(self) -> tuple[jax.Array, jax.Array]:
        """i and j, each along its own axis."""
        shapes = ((1, self.rows), (self.columns, 1)) if self.transposed else ((self.rows, 1), (1, self.columns))
        i, j = (jax.lax.broadcasted_iota(jnp.int32, x, x[0] == 1) for x in shapes)
        return i + self.i, j + self.j
