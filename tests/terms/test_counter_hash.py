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


@pytest.mark.parametrize("rate", [0.1, 0.5])
@pytest.mark.parametrize(("seed", "h"), [(0, 0), (1, 3), (MASK, 1)])
def test_rows_and_columns_have_nothing_in_common(seed, h, rate):
    """Not two rows, not two columns, not the corners of rectangles, and all of them no structure of low rank.

    Of independent bits the most that any of n^2 / 2 correlations of length n comes to is 6 of their deviations, fourth
    moments are those of a normal distribution, and the greatest singular value is 2 sqrt(n).
    """
    n = 512
    i, j = np.arange(n)[:, None] + 70_000, np.arange(n)[None]
    bits = np.asarray(counter_hash.bits(np.uint32(seed), 0, h, i, j))
    kept = ((bits >= np.uint32(rate * 2**32)) - (1 - rate)) / np.sqrt(rate * (1 - rate))
    for x in (kept, kept.T):
        common = x @ x.T / np.sqrt(n)
        np.fill_diagonal(common, 0)
        assert np.abs(common).max() < 7
        assert (common**4).mean() / (3 * (common**2).mean() ** 2) < 1.1
    assert np.linalg.norm(kept, 2) < 2.1 * np.sqrt(n)
    for down, right in ((1, 1), (1, 64), (8, 1), (128, 128)):
        corners = kept[:-down, :-right] * kept[down:, right:] * kept[:-down, right:] * kept[down:, :-right]
        assert abs(corners.mean()) * np.sqrt(corners.size) < 5


def test_bits_are_uniform():
    """Pearson's statistic of their upper and of their middle 8, of 255 degrees of freedom."""
    n = 512
    bits = np.asarray(counter_hash.bits(7, 1, 2, np.arange(n)[:, None], np.arange(n)[None]))
    for shift in (24, 12):
        counts = np.bincount((bits >> np.uint32(shift)).ravel() & 255, minlength=256)
        assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 255 + 5 * np.sqrt(2 * 255)
