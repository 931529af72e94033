"""Numbers held as two float32, against Python's own exact fractions."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jattn_kernels.tiles.two_parts import times


def _numbers():
    random = np.random.default_rng(0)
    x = (random.standard_normal(200) * 10.0 ** random.integers(-3, 31, 200)).astype(np.float32)
    return x, (x * 2.0**-25 * random.uniform(-1, 1, x.shape)).astype(np.float32)


def _there_and_back(x, rest):
    there, of_rest = times(x, rest, math.log(2))
    return times(there, of_rest, 1 / math.log(2))


def _exact(whole, rest):
    return [Fraction(float(x)) + Fraction(float(y)) for x, y in zip(whole, rest, strict=True)]


@pytest.mark.parametrize("factor", [math.log(2), 1 / math.log(2), 3.0])
def test_both_parts_together_are_right_to_46_bits(factor):
    got = jax.jit(lambda x, rest: times(x, rest, factor))(*_numbers())
    for x, y in zip(_exact(*got), _exact(*_numbers()), strict=True):
        assert abs(x / (y * Fraction(factor)) - 1) < 2.0**-45


def test_there_and_back_nothing_is_lost():
    x, rest = _numbers()
    back, of_rest = jax.jit(_there_and_back)(x, rest)
    np.testing.assert_array_equal(back, x)
    assert np.all(np.abs(of_rest - rest) <= np.abs(x) * 2.0**-44)


def test_what_is_not_finite_stays_what_it_is():
    x = jnp.array([jnp.inf, -jnp.inf, jnp.nan, 0.0, 3e38])
    whole, rest = times(x, jnp.zeros_like(x), 1 / math.log(2))
    np.testing.assert_array_equal(whole, [np.inf, -np.inf, np.nan, 0, np.inf])
    np.testing.assert_array_equal(rest, 0)
