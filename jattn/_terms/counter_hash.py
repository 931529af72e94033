"""Counter-based random bits: a pure function of (seed, b, h, i, j), the same on every backend and for every tiling."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from numpy.typing import ArrayLike

from jattn._terms.operand import Operand, is_whole, plain

_U = np.uint32


def seed(value: Any) -> Operand:
    """A seed as a uint32 operand."""
    value = plain(value)
    if is_whole(value):
        if not 0 <= value < 2**32:
            raise ValueError(f"seed must be in [0, 2^32), got {value}")
        return Operand(np.asarray(value, np.uint32), "")
    integers = isinstance(value, (jax.Array, np.ndarray)) and jnp.issubdtype(value.dtype, jnp.integer)
    if not integers or np.shape(value):
        raise TypeError(
            f"seed must be an int or an integer scalar array, got {type(value).__name__}:"
            " of a key, take jax.random.bits(key)"
        )
    return Operand(jnp.asarray(value).astype(jnp.uint32), "")


def mix(x: jax.Array) -> jax.Array:
    """The 32-bit finaliser `lowbias32` (C. Wellons, "Prospecting for Hash Functions", 2018)."""
    x = x ^ (x >> _U(16))
    x = x * _U(0x7FEB352D)
    x = x ^ (x >> _U(15))
    x = x * _U(0x846CA68B)
    return x ^ (x >> _U(16))


class RowHash(NamedTuple):
    """What the hash knows of a pair's row, uint32."""

    factor: Any
    word: Any


def rows(seed: ArrayLike, b: ArrayLike, h: ArrayLike, i: ArrayLike) -> RowHash:
    """What the hash knows of the queries i of head h of batch element b."""
    u_seed, u_b, u_h, u_i = (jnp.asarray(x).astype(jnp.uint32) for x in (seed, b, h, i))
    head = mix(mix(u_seed + _U(0x9E3779B9)) ^ (u_b * _U(0x85EBCA6B) + u_h * _U(0xC2B2AE35)))
    word = mix(head ^ (u_i * _U(0x27D4EB2F)))
    return RowHash(mix(word + _U(0x9E3779B9)) | _U(1), word)


def columns(j: ArrayLike) -> jax.Array:
    """What the hash knows of keys j, uint32."""
    return mix(jnp.asarray(j).astype(jnp.uint32) * _U(0x165667B1) + _U(1))


def join(rows: RowHash, column: jax.Array) -> jax.Array:
    """The bits of pairs, from what is known of their rows and of their columns."""
    return rows.factor * column + rows.word


def bits(seed: ArrayLike, b: ArrayLike, h: ArrayLike, i: ArrayLike, j: ArrayLike) -> jax.Array:
    """32 random bits for every pair of a tile; the upper ones are the better ones.

    All arithmetic is in uint32 and wraps:

        head   = mix(mix(seed + 0x9E3779B9) ^ (b * 0x85EBCA6B + h * 0xC2B2AE35))
        row    = mix(head ^ (i * 0x27D4EB2F))
        factor = mix(row + 0x9E3779B9) | 1
        column = mix(j * 0x165667B1 + 1)
        bits   = factor * column + row

    with `mix` the finaliser `lowbias32`.  A tile of [bt, bs] costs 2 bt + bs of them, and a pair one multiplication and
    one sum: integers are the slowest thing that a GPU's kernels do.

    Were `factor`, `row` and `column` drawn at random, any pairs of which no four stand in the corners of a rectangle
    would be independent: of every two in a row columns differ, of every two in a column the summand does.  Of four
    corners the differences along both rows, factor * (column - other), end with as many zeros as each other, which is
    all that they share: what looks at the upper bits cannot tell.  A sum of multiples is Dietzfelbinger's hash
    ("Universal hashing and k-wise independent random variables via integer arithmetic without primes", 1996).
    """
    return join(rows(seed, b, h, i), columns(j))


def uniform(random_bits: jax.Array, dtype: DTypeLike) -> jax.Array:
    """The upper 23 bits as a number strictly between 0 and 1."""
    return ((random_bits >> _U(9)).astype(dtype) + 0.5) * jnp.dtype(dtype).type(2.0**-23)
