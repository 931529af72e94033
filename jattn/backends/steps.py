"""Which part of each array one step works on: axis letters, tiles and how arrays are cut and put back.

Arrays are named by their leading axes: `bth` the query side, `bsg` the key side, a subset of `bhts` an operand.
Further axes stay whole.  An array's batch axis may be shorter than the call's: element b then uses entry b % length
(vmap over some of the arguments makes such arrays, and they are never repeated in memory).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jattn._terms import AnyArray, Size, wide
from jattn.backends.batches import spread
from jattn.backends.pages import Paged

QUERY, KEY = "bth", "bsg"


def split(n: int | jax.Array, size: int) -> tuple[Any, Any]:
    """n // size and n % size of an index n >= 0, in the fewest operations: each is one more that XLA compiles."""
    if size == 1 or isinstance(n, int):
        return (n, 0) if size == 1 else divmod(n, size)
    n, size = n.astype(jnp.uint32), jnp.uint32(size)
    return jax.lax.div(n, size).astype(jnp.int32), jax.lax.rem(n, size).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Step:
    """One step's place: first index and length along every axis."""

    at: dict[str, tuple[Any, Size]]
    group: int  # how many query heads share a key head

    def along(self, axis: str, start: int | jax.Array, size: int) -> Step:
        return Step({**self.at, axis: (start, size)}, self.group)

    def positions(self) -> tuple[jax.Array, jax.Array]:
        """i `[bt, 1]` and j `[1, bs]`."""
        (i, rows), (j, columns) = self.at["t"], self.at["s"]
        return (i + jnp.arange(rows, dtype=jnp.int32))[:, None], (j + jnp.arange(columns, dtype=jnp.int32))[None]

    def _window(self, array: AnyArray | Paged, axes: str) -> tuple[list[Any], list[Size]]:
        start, size = [0] * array.ndim, list(array.shape)
        for dim, axis in enumerate(axes):
            first, n = self.at[axis]
            if n < size[dim]:
                start[dim], size[dim] = (split(first, size[dim])[1] if axis == "b" else first), n
        start = [jnp.asarray(x, jnp.int32) for x in start]
        return start, size

    def part(self, array: AnyArray | Paged, axes: str) -> jax.Array:
        """The part of an array that the step works on."""
        start, size = self._window(array, axes)
        if isinstance(array, Paged):
            return array.cut(start, size)
        part = (
            jnp.asarray(array)
            if size == list(array.shape)
            else jax.lax.dynamic_slice(array, start, size, allow_negative_indices=False)
        )
        return spread(part, self.at["b"][1]) if "b" in axes else part

    def put(self, array: jax.Array, axes: str, part: jax.Array, add: bool = False) -> jax.Array:
        """`array` with its part replaced by (or with `add` increased by) `part`."""
        start, size = self._window(array, axes)
        if part.shape[0] > size[0]:
            part = jnp.sum(part.reshape(-1, *size[:1], *part.shape[1:]), axis=0)
        if add:
            part = jax.lax.dynamic_slice(array, start, size, allow_negative_indices=False) + part
        elif size == list(array.shape):
            return part.astype(array.dtype)
        return jax.lax.dynamic_update_slice(array, part.astype(array.dtype), start, allow_negative_indices=False)

    # tiles put heads in front: the query side is [b, g, r, bt, ..], the key side [b, g, bs, ..]

    def rows(self, array: jax.Array) -> jax.Array:
        x = jnp.swapaxes(self.part(array, QUERY), 1, 2)
        return x.reshape(x.shape[0], -1, self.group, *x.shape[2:])

    def put_rows(self, array: jax.Array, tile: jax.Array, add: bool = False) -> jax.Array:
        x = tile.reshape(tile.shape[0], -1, *tile.shape[3:])
        return self.put(array, QUERY, jnp.swapaxes(x, 1, 2), add)

    def columns(self, array: jax.Array | Paged) -> jax.Array:
        return jnp.swapaxes(self.part(array, KEY), 1, 2)

    def put_columns(self, array: jax.Array, tile: jax.Array, add: bool = False) -> jax.Array:
        return self.put(array, KEY, jnp.swapaxes(tile, 1, 2), add)

    def operand(self, array: AnyArray, axes: str) -> jax.Array:
        """An operand's tile: `[b, g, r]` as far as it has them, then `[bt|1, bs|1]` if it has either, then the rest."""
        x = wide(self.part(array, axes))
        shape = [*x.shape[:1]] if "b" in axes else []
        shape += [self.at["h"][1] // self.group, self.group] if "h" in axes else []
        if "t" in axes or "s" in axes:
            shape += [self.at[a][1] if a in axes else 1 for a in "ts"]
        return x.reshape(*shape, *x.shape[len(axes) :])

    def put_operand(self, array: jax.Array, axes: str, tile: jax.Array) -> jax.Array:
        """Adds the gradient of a tile to that of its operand."""
        if not axes:
            return array + tile.astype(array.dtype)
        return self.put(array, axes, tile.reshape(*(self.at[a][1] for a in axes), *array.shape[len(axes) :]), add=True)
