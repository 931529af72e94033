"""Masks as bits: a static layout in words of 32 columns, looked up inside a kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jattn_kernels.tiles.place import Index, Place

_UNROLLED = 8  # look-ups of a rectangle, beyond which they are a loop


class Cells(NamedTuple):
    """A layout of bits: (i, j) gets that of row i // side, column j // side; in words of 32 columns."""

    side: int
    rows: int
    words: int  # how many words a row of cells has

    def spanned(self, length: int) -> int:
        """How many cells a stretch of positions meets at most."""
        return (length + self.side - 2) // self.side + 1

    def within(self, position: jax.Array) -> jax.Array:
        """The cells of positions counted from the start of a cell, fewer than 2^20 of them."""
        if self.side & (self.side - 1) == 0:
            return position >> (self.side.bit_length() - 1)
        return ((position.astype(jnp.float32) + 0.5) * (1 / self.side)).astype(jnp.int32)  # the unit has no division

    def read(self, ref: jax.Ref, h: Index, place: Place, to_column: Callable, query: Index, key: Index) -> jax.Array:
        """The bits of a rectangle whose queries and keys count from `query` and `key`, as booleans.

        `to_column` turns `[1, n]` to `[n, 1]`.  Rows' words are looked up one by one, each is scalar memory's.
        """
        i, j = place.i + query, place.j + key
        row, column = jax.lax.div(i, jnp.int32(self.side)), jax.lax.div(j, jnp.int32(self.side))
        first = column >> 5
        words = range((self.spanned(place.columns) + 30) // 32 + 1)
        at = jax.lax.broadcasted_iota(jnp.int32, (1, place.rows), 1) + (i - row * self.side)
        cell = self.within(at)

        def look_up(n: Index, lines: list[jax.Array]) -> list[jax.Array]:
            line = (h * self.rows + jnp.minimum(row + n, self.rows - 1)) * self.words
            entry = lambda w: ref[line + jnp.minimum(first + w, self.words - 1)]
            return [jnp.where(cell == n, entry(w), x) for w, x in zip(words, lines, strict=True)]

        lines = [jnp.zeros((1, place.rows), jnp.int32) for _ in words]
        count = self.spanned(place.rows)
        if count <= _UNROLLED:
            for n in range(count):
                lines = look_up(n, lines)
        else:
            lines = jax.lax.fori_loop(np.int32(0), np.int32(count), look_up, lines)
        if not place.transposed:
            lines = [to_column(x) for x in lines]
        shape = (place.columns, 1) if place.transposed else (1, place.columns)
        at = jax.lax.broadcasted_iota(jnp.int32, shape, shape[0] == 1) + (j - column * self.side)
        column = self.within(at) + (column & 31)
        word = lines[0]
        for w in words[1:]:
            word = jnp.where(column >> 5 == w, lines[w], word)
        return (word >> (column & 31)) & 1 == 1
