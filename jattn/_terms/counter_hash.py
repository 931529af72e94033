"""Counter-based random bits: a pure function of (seed, b, h, i, j), the same on every backend and for every tiling."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from numpy.typing import ArrayLike

from jattn._terms.operand import Operand

_U = np.uint32


def seed(value: ArrayLike) -> Operand:
    """A seed as a uint32 operand."""
    if isinstance(value, (int, np.integer)):
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


def bits(seed: ArrayLike, b: ArrayLike, h: ArrayLike, i: ArrayLike, j: ArrayLike) -> jax.Array:
    """32 random bits for every pair of a tile.

    All arithmetic is in uint32 and wraps:

        head = mix(mix(seed + 0x9E3779B9) ^ (b * 0x85EBCA6B + h * 0xC2B2AE35))
        row  = mix(head ^ (i * 0x27D4EB2F))
        bits = mix(row ^ mix(j * 0x165667B1 + 1))

    with `mix` the finaliser `lowbias32`.  A tile of [bt, bs] costs bt + bs + bt * bs of them, so the cost per pair is
    one xor and one `mix`: two multiplications, three shifts, three xors.
    """
    u_seed, u_b, u_h, u_i, u_j = (jnp.asarray(x).astype(jnp.uint32) for x in (seed, b, h, i, j))
    head = mix(mix(u_seed + _U(0x9E3779B9)) ^ (u_b * _U(0x85EBCA6B) + u_h * _U(0xC2B2AE35)))
    row = mix(head ^ (u_i * _U(0x27D4EB2F)))
    return mix(row ^ mix(u_j * _U(0x165667B1) + _U(1)))


def uniform(random_bits: jax.Array, dtype: DTypeLike) -> jax.Array:
    """The upper 23 bits as a number strictly between 0 and 1."""
    return ((random_bits >> _U(9)).astype(dtype) + 0.5) * jnp.dtype(dtype).type(2.0**-23)
