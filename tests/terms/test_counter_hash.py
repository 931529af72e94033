"""The counter hash of random bits: the one specified, and its statistics."""

import numpy as np
import pytest

from jattn._terms import counter_hash
from tests.oracle import bits_of

MASK = 2**32 - 1


@pytest.mark.smoke
@pytest.mark.parametrize("seed", [0, 1, 12345, MASK])
def test_bits_are_the_ones_specified(seed):
    i, j = np.array([0, 1, 70000]), np.array([0, 3, 511, 2**20])
    got = counter_hash.bits(seed if seed < 2**31 else np.uint32(seed), 2, 5, i[:, None], j[None])
    np.testing.assert_array_equal(got, [[bits_of(seed, 2, 5, int(x), int(y)) for y in j] for x in i])


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_rate_and_independence(rate):
    n = 256
    i, j = np.arange(n)[:, None], np.arange(n)[None]
    bits = np.stack([counter_hash.bits(seed, b, h, i, j) for seed in (0, 1) for b in (0, 1) for h in (0, 1)])
    kept = (bits >= np.uint32(rate * 2**32)) - (1 - rate)
    noise = np.sqrt(rate * (1 - rate))
    assert abs(kept.mean()) < 5 * noise / np.sqrt(kept.size)
    bound = 5 * noise**2 / np.sqrt(n * n)
    for plane in kept:
        for shift in ((0, 1), (1, 0), (1, 1), (0, 16), (64, 0)):
            assert abs((plane * np.roll(plane, shift, (0, 1))).mean()) < bound
    for m in range(len(kept)):
        for other in range(m):
            assert abs((kept[m] * kept[other]).mean()) < bound
    for axis in (1, 2):  # no row and no column is special
        assert np.abs(kept.mean(axis)).max() < 6 * noise / np.sqrt(n)
