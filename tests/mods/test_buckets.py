"""T5's buckets, as published, and what becomes of positions that a table has no bucket for."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import mods
from tests.tolerances import assert_close


def _t5(relative: int, bidirectional: bool, buckets: int, max_distance: int) -> int:
    """`relative_position_bucket` of mesh-tensorflow's and HF's T5, of one memory position minus query position."""
    got, n = 0, -relative
    if bidirectional:
        buckets //= 2
        if n < 0:
            got += buckets
        n = abs(n)
    else:
        n = max(n, 0)
    max_exact = buckets // 2
    if n < max_exact:
        return got + n
    large = max_exact + int(math.log(n / max_exact) / math.log(max_distance / max_exact) * (buckets - max_exact))
    return got + min(large, buckets - 1)


@pytest.mark.smoke
@pytest.mark.parametrize("sizes", [(32, 128), (32, 1000), (8, 20), (64, 256), (6, 7), (6, 100), (128, 100)])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_t5_bucket(bidirectional, sizes):
    relative = np.arange(-1200, 1201, dtype=np.int32)
    got = np.asarray(mods.t5_bucket(bidirectional, *sizes)(jnp.asarray(relative)))
    wanted = np.array([_t5(int(x), bidirectional, *sizes) for x in relative])
    np.testing.assert_array_equal(got, wanted)


def test_t5_bucket_as_published():
    """Rows of the table that T5's code gives for 32 buckets up to 128."""
    relative = np.array([-200, -128, -91, -64, -16, -9, -8, -7, -1, 0, 1, 7, 8, 64, 200], np.int32)
    both = mods.t5_bucket(True)(jnp.asarray(relative))
    np.testing.assert_array_equal(both, [15, 15, 15, 14, 10, 8, 8, 7, 1, 0, 17, 23, 24, 30, 31])
    past = mods.t5_bucket(False)(jnp.array([-200, -128, -113, -112, -64, -16, -15, 0, 5], np.int32))
    np.testing.assert_array_equal(past, [31, 31, 31, 30, 26, 16, 15, 0, 0])


@pytest.mark.parametrize("arguments", [(True, 3), (False, 1), (True, 32, 8), (False, 32, 16)])
def test_t5_bucket_refuses(arguments):
    with pytest.raises(ValueError, match="buckets must be >= . and max_distance >"):
        mods.t5_bucket(*arguments)


@pytest.mark.parametrize("implementation", ["reference", "blockwise", "pallas_tpu"])
@pytest.mark.parametrize("shift", [0, 20, -30])
def test_buckets_beyond_the_table_are_its_first_and_its_last(monkeypatch, shift, implementation):
    monkeypatch.setenv("JATTN_INTERPRET", "1")
    q, k, v = (jax.random.normal(jax.random.key(n), (1, 8, 2, 4)) for n in range(3))
    table = jax.random.normal(jax.random.key(3), (2, 8))

    def loss(table, bucket, **options):
        return jnp.sum(jattn.attention(q, k, v, mods=mods.relative(table, bucket), **options) ** 2)

    got = jax.value_and_grad(loss)(table, lambda r: r + shift, implementation=implementation)
    wanted = jax.value_and_grad(loss)(table, lambda r: jnp.clip(r + shift, 0, 7), implementation="reference")
    for x, y in zip(got, wanted, strict=True):
        assert_close(x, y, 1e-5)
