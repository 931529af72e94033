"""Tile sizes of the GPU kernels, which check themselves, and how numbers are held and padded."""

from __future__ import annotations

import jax.numpy as jnp
import pytest
from jattn_kernels.gpu.sizes import Lengths, TileSizes, apart, by_eights, stored_as


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rows": 96}, "rows must be those of one warpgroup's tile or of two"),
        ({"rows": 256}, "rows must be those"),
        ({"rows": 64, "height": 128}, "rows must be those"),
        ({"columns": 96}, "columns must be 16, 32, 64 or 128"),
        ({"columns": 64}, "piece a multiple of 16 that divides them"),
        ({"piece": 24}, "piece a multiple of 16"),
        ({"steps": 0}, "steps at least 1"),
    ],
)
def test_sizes_that_no_kernel_takes_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        TileSizes(**changes)


def test_keys_lie_along_columns_or_rows():
    sizes = TileSizes(rows=64, columns=32, piece=16)
    assert (sizes.keys("t"), sizes.keys("s")) == (32, 64)
    assert TileSizes(rows=256, height=128).rows == 256


@pytest.mark.parametrize(
    ("dtype", "of_pairs", "of_one"),
    [
        ("bfloat16", "bfloat16", "float32"), ("float32", "float32", "float32"), ("bool", "bfloat16", "int32"),
        ("uint32", "uint32", "uint32"), ("int8", "int32", "int32"),
    ],
)  # fmt: skip
def test_numbers_of_pairs_are_held_small(dtype, of_pairs, of_one):
    assert stored_as(jnp.dtype(dtype), True) == of_pairs
    assert stored_as(jnp.dtype(dtype), False) == of_one


@pytest.mark.parametrize(
    ("n", "dtype", "numbers"),
    [(1, "float32", 32), (32, "float32", 32), (33, "float32", 64), (65, "bfloat16", 128), (0, "int8", 0)],
)
def test_stretches_of_shared_memory_begin_at_multiples_of_128_bytes(n, dtype, numbers):
    assert apart(n, jnp.dtype(dtype)) == numbers


@pytest.mark.parametrize(("n", "padded"), [(0, 0), (1, 1), (7, 7), (8, 8), (9, 16), (16, 16), (17, 24)])
def test_axes_are_of_eights_or_no_longer_than_one(n, padded):
    assert by_eights(n) == padded


def test_lengths_are_padded_to_what_all_tiles_divide():
    assert Lengths(1, 256).padded == {"t": 256, "s": 256}
    assert Lengths(257, 0).padded == {"t": 512, "s": 0}
