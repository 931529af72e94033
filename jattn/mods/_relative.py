"""A learned bias for each relative position."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike

from jattn._terms import operand, term
from jattn.mods._buckets import Bucketed, t5_bucket
from jattn.mods._mod import Mod


@term
class Relative(Bucketed):
    """score + table[bucket(j - i)]."""

    hides = True

    def __call__(self, score: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
        # the bias is constant along diagonals: look up each diagonal of the tile once, then shear the strip
        rows, columns = i.shape[0], j.shape[1]
        first = j[0, 0] - i[0, 0] - (rows - 1)
        strip = self.entries(first + jnp.arange(rows + columns - 1, dtype=jnp.int32))
        return score + _shear(strip, rows, columns)

    def at_columns(self, columns: jax.Array) -> jax.Array:
        return jnp.take(self.table.array, columns, axis=1).swapaxes(0, 1)


def _shear(strip: jax.Array, rows: int, columns: int) -> jax.Array:
    """[rows + columns - 1] -> [rows, columns], with [r, c] = strip[c - r + rows - 1]: no gather, no scatter in
    reverse."""
    n = rows + columns - 1
    periodic = jnp.broadcast_to(strip, (rows + 1, n)).reshape(-1)
    # row r of a view that is one longer than the period starts r places later in it
    return jnp.flip(periodic[: rows * (n + 1)].reshape(rows, n + 1)[:, :columns], 0)


def relative(table: ArrayLike, bucket: Callable[[jax.Array], jax.Array] | None = None) -> Mod:
    """score + table[h, bucket(j - i)]: a learned bias for each relative position.

    Memory is that of the table, never `[t, s]`.

    Args:
      table: numbers `[h, buckets]`, which get gradients.
      bucket: maps int32 arrays of j - i to columns of the table, elementwise, in `jax.numpy`; None is
        `t5_bucket(bidirectional=True)` with as many buckets as the table has columns.  Below 0 it is the first, past
        the last the last.

    Raises:
      ValueError: `table` has other axes, no bucket, or too few or too many of them for the bucket that None is.
      TypeError: `bucket` is not a function; when `attention` is called: it does not map integers to as many.

    >>> import jax.numpy as jnp, jattn
    >>> table = jnp.zeros((2, 32))
    >>> q = jnp.ones((1, 3, 2, 4))
    >>> jattn.attention(q, q, q, mods=jattn.mods.relative(table, jattn.mods.t5_bucket(False))).shape
    (1, 3, 2, 4)

    Source: Raffel et al. 2020, section 2.1; Shaw et al. 2018.
    """
    named = operand(table, "h")
    if named.array.ndim != 2:
        raise ValueError(f"table must be [h, buckets], got shape {named.array.shape}")
    columns = named.array.shape[1]
    if columns == 0 or (bucket is None and not 4 <= columns < 512):
        raise ValueError(
            f"table must have a bucket, and 4 to 511 where T5's of distances up to 128 are taken, got {columns}:"
            " give bucket, a function of j - i"
        )
    return Relative(named, *Relative.parts(t5_bucket(True, columns) if bucket is None else bucket))
