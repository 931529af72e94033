"""Rows of all key heads one after the other, and back in the call's order.

Rows that are apart in memory are loaded and stored in one go, of 32 bits and of as many columns as a register has
lanes; so both ways lead through an array of that width.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from jattn_kernels.tpu.decode.fold import Fold, divided
from jattn_kernels.tpu.sizes import LANES


def turn(x: jax.Array, into: jax.Ref, staged: jax.Ref, fold: Fold) -> None:
    """Writes `[t g (h / g), n]` as `[t (h / g) g, n]`; rows that fill up to whole tiles are 0."""
    into[...] = jnp.zeros(into.shape, into.dtype)
    for columns in _whole_lanes(x.shape[1]):
        part = x[:, columns]
        staged[:, : part.shape[1]] = part.astype(staged.dtype)
        for row, first, apart in fold.runs:
            into[row : row + fold.g, columns] = staged[pl.ds(first, fold.g, apart), :][:, : part.shape[1]]


def turned_back(x: jax.Array, staged: jax.Ref, fold: Fold) -> jax.Array:
    """`[t (h / g) g, n]` as `[t g (h / g), n]`."""
    parts = []
    for columns in _whole_lanes(x.shape[1]):
        part = x[:, columns]
        for row, first, apart in fold.runs:
            staged[pl.ds(first, fold.g, apart), : part.shape[1]] = part[row : row + fold.g]
        parts.append(staged[:, : part.shape[1]])
    return jnp.concatenate(parts, 1)


def along_lanes(x: jax.Array, fold: Fold) -> jax.Array:
    """`[rows, LANES]`, numbers of rows that are the same in all lanes, as a row `[1, rows]` in the call's order."""
    row = jax.lax.broadcasted_iota(jnp.int32, (fold.rows, 1), 0)
    if fold.turned:
        i, head = divided(row, fold.h)
        place, key_head = divided(head, fold.g)
        row = i * fold.h + key_head * (fold.h // fold.g) + place
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
    parts = [jnp.sum(jnp.where(row == lane + at, x, 0), axis=0, keepdims=True) for at in range(0, fold.rows, LANES)]
    return jnp.concatenate(parts, 1)[:, : fold.rows]


def _whole_lanes(n: int) -> Iterator[slice]:
    for at in range(0, n, LANES):
        yield slice(at, min(at + LANES, n))
