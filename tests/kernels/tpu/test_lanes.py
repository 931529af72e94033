"""Moves between rows, columns and lanes, interpreted."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jattn_kernels.tpu.lanes import lane_slice, to_column, to_row
from jax.experimental import pallas as pl


@pytest.mark.parametrize("n", [1, 8, 128, 300])
def test_a_row_becomes_a_column_and_a_row_again(n):
    x = jnp.arange(n, dtype=jnp.float32)
    np.testing.assert_array_equal(to_column(x[None]), x[:, None])
    np.testing.assert_array_equal(to_row(x[:, None]), x[None])


@pytest.mark.parametrize("traced", [False, True])
def test_a_slice_begins_at_a_multiple_of_the_lanes(traced):
    x = jnp.arange(512, dtype=jnp.float32)[None]

    def kernel(at, x, out):
        out[...] = x[:, lane_slice(at[0] * 128 if traced else 256, 128)]

    got = pl.pallas_call(kernel, jax.ShapeDtypeStruct((1, 128), jnp.float32), interpret=True)(jnp.array([2]), x)
    np.testing.assert_array_equal(got, x[:, 256:384])
