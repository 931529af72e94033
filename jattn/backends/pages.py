"""Keys and values that lie in pages, as a step cuts them: of pages that no step works on none is copied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jattn._call.pages import flat


class Paged(NamedTuple):
    """Keys or values `[b, s, g, d]`: key j of element b is row j % page of page `table[b, j // page]`."""

    pool: jax.Array
    """`[p, page, g, d]`."""
    table: jax.Array
    """`[b, m]`; a page out of range is the nearest."""
    aligned: bool
    """Whether steps begin where pages do, and end there."""

    @property
    def shape(self) -> tuple[int, ...]:
        return flat(self.pool, self.table).shape

    @property
    def ndim(self) -> int:
        return self.pool.ndim

    @property
    def dtype(self) -> jnp.dtype:
        return self.pool.dtype

    def cut(self, start: Sequence[int | jax.Array], size: Sequence[int]) -> jax.Array:
        """`jax.lax.dynamic_slice` of them: whole pages are copied, and of these the rows that are asked for."""
        zero, b, s, *rest = (jnp.asarray(x, jnp.int32) for x in (0, *start))
        (batch, n, *widths), page = size, self.pool.shape[1]
        touched = n // page if self.aligned else min(self.table.shape[1], -(-(n - 1) // page) + 1)
        first = jnp.minimum(s // page, self.table.shape[1] - touched)
        table = jax.lax.dynamic_slice(self.table, (b, first), (batch, touched), allow_negative_indices=False)
        pages = jnp.take(self.pool, table, axis=0, mode="clip")
        rows = pages.reshape(batch, touched * page, *self.pool.shape[2:])
        at = (zero, zero if self.aligned else s - first * page, *rest)
        return jax.lax.dynamic_slice(rows, at, (batch, n, *widths), allow_negative_indices=False)
