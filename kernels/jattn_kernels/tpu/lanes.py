"""Moves between rows, columns and lanes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from jattn_kernels.tpu.sizes import LANES


def lane_slice(start: int | jax.Array, size: int) -> Any:
    """A slice that starts at a multiple of the number of lanes, known while tracing or not."""
    return pl.ds(start if isinstance(start, int) else pl.multiple_of(start, LANES), size)


def to_column(x: jax.Array) -> jax.Array:
    """The row `[1, n]` as a column `[n, 1]`."""
    return jnp.broadcast_to(x, (LANES, x.shape[1])).T[:, :1]


def to_row(x: jax.Array) -> jax.Array:
    """The column `[n, 1]` as a row `[1, n]`."""
    return jnp.broadcast_to(x, (x.shape[0], LANES)).T[:1]
