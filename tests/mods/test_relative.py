"""Relative positions against a look-up of every pair, and how few entries are looked up."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn import mods
from jattn.mods._relative import _shear
from tests.mods.formulas import SIZES, TILES, I, J, agree, blockwise, plain

BUCKETS = {
    "clip": (7, lambda r: jnp.clip(r, -3, 3) + 3),
    "every": (SIZES.t + SIZES.s, lambda r: r + SIZES.t),
    "t5": (8, mods.t5_bucket(True, 8, 9)),
    "t5-past": (8, mods.t5_bucket(False, 8, 9)),
}


@pytest.mark.parametrize(("name", "blocks"), list(zip(BUCKETS, TILES, strict=True)))
def test_relative_is_a_lookup(draw, name, blocks):
    count, bucket = BUCKETS[name]
    arrays = *draw.inputs(), draw.normal("h", count)
    got = lambda q, k, v, table: blockwise(blocks)(q, k, v, mods=mods.relative(table, bucket))
    agree(got, lambda q, k, v, table: plain(q, k, v, lambda x: x + table[:, bucket(J - I)]), arrays)


def test_relative_takes_t5s_buckets_by_default(draw):
    arrays = *draw.inputs(), draw.normal("h", 10)
    bucket: Any = mods.t5_bucket(True, 10)
    got = lambda q, k, v, table: blockwise()(q, k, v, mods=mods.relative(table))
    agree(got, lambda q, k, v, table: plain(q, k, v, lambda x: x + table[:, bucket(J - I)]), arrays)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (5, 5), (3, 8), (8, 3)])
def test_shear_is_a_toeplitz_matrix(shape):
    rows, columns = shape
    strip = np.arange(rows + columns - 1)
    wanted = strip[np.arange(columns)[None] - np.arange(rows)[:, None] + rows - 1]
    np.testing.assert_array_equal(_shear(strip, rows, columns), wanted)


def test_relative_looks_up_diagonals_not_pairs():
    """`bt + bs - 1` of them a tile, forwards and backwards."""
    looked = []

    def bucket(r):
        looked.append(r.shape)
        return jnp.clip(r, 0, 3)

    q = jnp.ones((1, 64, 1, 2))
    loss = lambda table: blockwise((16, 32))(q, q, q, mods=mods.relative(table, bucket)).sum()
    jax.jit(jax.grad(loss)).lower(jnp.ones((1, 4)))
    assert set(looked) - {(2003,), (2011,)} == {(16 + 32 - 1,)}  # the numbers on which it is checked
