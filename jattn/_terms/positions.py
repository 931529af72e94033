"""Positions and lengths: integers of 32 bits, and sums of them that do not wrap around."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jattn._terms.operand import AnyArray, Operand, number, plain

FAR = 2**31 - 1
"""Beyond every position: a side of a window that reaches so far is open."""
LAST = 2**30
"""The greatest position there can be: sums of one with a number of as many bits do not wrap around."""


def shifted(position: AnyArray, by: int | AnyArray) -> AnyArray:
    """position + by, between -FAR and FAR: in int32 a sum beyond them would come out with the other sign."""
    if isinstance(by, int) and abs(by) < LAST:
        return position + by
    if isinstance(position, np.ndarray) and isinstance(by, int):
        return np.minimum(position.astype(np.int64) + by, FAR)
    if jnp.issubdtype(position.dtype, jnp.floating):
        return position + by
    by = jnp.asarray(by, jnp.int32)
    return jnp.clip(position, -FAR - jnp.minimum(by, 0), FAR - jnp.maximum(by, 0)) + by


def integer(value: Any, name: str) -> int | Operand:
    """An int or an int32 operand, within the positions that there can be."""
    held = number(value, name)
    if isinstance(held, float) or (isinstance(held, Operand) and not jnp.issubdtype(held.array.dtype, jnp.integer)):
        got = f"{held.array.dtype}{list(held.array.shape)}" if isinstance(held, Operand) else repr(held)
        raise TypeError(f"{name} must be an integer, got {got}")
    if isinstance(held, Operand):
        return Operand(int32(held.array), held.axes)
    return max(-FAR, min(held, FAR))


def lengths(value: Any, name: str) -> int | Operand:
    """An int, or integers `[b]` as an operand."""
    value = plain(value)
    if isinstance(value, (list, tuple)):
        value = np.asarray(value)
    if isinstance(value, (np.ndarray, jax.Array)) and value.ndim:
        if value.ndim > 1 or not jnp.issubdtype(value.dtype, jnp.integer):
            raise TypeError(f"{name} must be an int or integers [b], got {value.dtype}{list(value.shape)}")
        return Operand(int32(value), "b")
    return integer(value, name)


def int32(array: AnyArray) -> AnyArray:
    """Integers as int32 between -FAR and FAR, those beyond as the nearer of the two."""
    if array.dtype in (jnp.int8, jnp.int16, jnp.uint8, jnp.uint16):
        return array.astype(jnp.int32)
    least = 0 if jnp.issubdtype(array.dtype, jnp.unsignedinteger) else -FAR
    xp = np if isinstance(array, np.ndarray) else jnp
    return xp.clip(array, xp.asarray(least, array.dtype), xp.asarray(FAR, array.dtype)).astype(jnp.int32)
