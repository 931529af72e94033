"""Counter-based random bits: a pure function of (seed, b, h, i, j), the same on every backend and for every tiling."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

_U = np.uint32


def mix(x: Any) -> Any:
    """The 32-bit finaliser `lowbias32` (C. Wellons, "Prospecting for Hash Functions", 2018)."""
    x = x ^ (x >> _U(16))
    x = x * _U(0x7FEB352D)
    x = x ^ (x >> _U(15))
    x = x * _U(0x846CA68B)
    return x ^ (x >> _U(16))


def bits(seed: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    """32 random bits for every pair of a tile.

    All arithmetic is in uint32 and wraps:

        head = mix(mix(seed + 0x9E3779B9) ^ (b * 0x85EBCA6B + h * 0xC2B2AE35))
        row  = mix(head ^ (i * 0x27D4EB2F))
        bits = mix(row ^ mix(j * 0x165667B1 + 1))

    with `mix` the finaliser `lowbias32`.  A tile of [bt, bs] costs bt + bs + bt * bs of them, so the cost per pair is
    one xor and one `mix`: two multiplications, three shifts, three xors.
    """
    seed, b, h, i, j = (jnp.asarray(x).astype(jnp.uint32) for x in (seed, b, h, i, j))
    head = mix(mix(seed + _U(0x9E3779B9)) ^ (b * _U(0x85EBCA6B) + h * _U(0xC2B2AE35)))
    row = mix(head ^ (i * _U(0x27D4EB2F)))
    return mix(row ^ mix(j * _U(0x165667B1) + _U(1)))


def uniform(random_bits: Any, dtype: Any) -> Any:
    """The upper 23 bits as a number strictly between 0 and 1."""
    return ((random_bits >> _U(9)).astype(dtype) + 0.5) * dtype(2.0**-23)
