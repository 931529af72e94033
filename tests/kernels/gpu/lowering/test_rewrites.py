"""What Mosaic lacks, rewritten: against NumPy in float64, on ordinary numbers, at the ends and at what has no result."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jattn_kernels.gpu.lowering import rewrites
from jax import lax

_SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, 3.0, 88.8, -88.8, 1e9, math.inf, -math.inf, math.nan]


def numbers(count: int = 4000) -> np.ndarray:
    random = np.random.default_rng(0)
    sizes = np.exp(random.uniform(-40, 40, count)) * random.choice([-1, 1], count)
    parts = (random.normal(size=count) * 3, sizes, random.uniform(-1, 1, count), _SPECIAL)
    return np.concatenate(parts).astype(np.float32)


def ulps(got: jax.Array, want: np.ndarray) -> float:
    """The largest error; subnormal results are left out, which the CPU takes for 0."""
    with np.errstate(all="ignore"):
        rounded = want.astype(np.float32)
        error = np.abs(np.asarray(got, np.float64) - want) / np.spacing(np.abs(rounded)).astype(np.float64)
    same = (np.asarray(got) == rounded) | (np.isnan(got) & np.isnan(rounded))
    error = np.where(same | ((np.abs(want) < 1.2e-38) & (want != 0)), 0, error)
    return math.inf if np.isnan(error).any() else float(error.max())


def _each(fn: Callable[[float], float]) -> Callable[[np.ndarray], np.ndarray]:
    def one(x: float) -> float:
        return math.nan if math.isnan(x) else fn(x)

    return np.vectorize(one, otypes=[np.float64])


ONE_ARGUMENT = {
    "log1p": (np.log1p, 2.5), "expm1": (np.expm1, 2), "floor": (np.floor, 0), "ceil": (np.ceil, 0),
    "erf": (_each(math.erf), 5), "erfc": (_each(math.erfc), 12), "cbrt": (np.cbrt, 2), "tan": (np.tan, 5),
    "log": (np.log, 2), "log2": (np.log2, 3), "sin": (np.sin, 4), "cos": (np.cos, 4),
    "cosh": (np.cosh, 2), "atan": (np.arctan, 3), "asin": (np.arcsin, 3), "acos": (np.arccos, 3),
    "asinh": (np.arcsinh, 4), "acosh": (np.arccosh, 4), "atanh": (np.arctanh, 4), "sinh": (np.sinh, 3),
    "logistic": (lambda x: 1 / (1 + np.exp(-x)), 3),
}  # fmt: skip


@pytest.mark.parametrize("name", ONE_ARGUMENT)
def test_functions_of_one_number(name: str):
    want, most = ONE_ARGUMENT[name]
    x = numbers()
    x = x[~(np.abs(x) > 80) | ~np.isfinite(x)] if name in ("sinh", "cosh") else x
    if name in ("sin", "cos", "tan"):
        turns = np.arange(1, 20000, 7) * (math.pi / 2)  # near them a sine or a cosine is all cancellation
        large = np.random.default_rng(3).uniform(-(2**23), 2**23, 20000)
        x = np.concatenate([x[~(np.abs(x) > 2**23) | ~np.isfinite(x)], *(y.astype(np.float32) for y in (turns, large))])
    if name in ("log", "log2"):
        x = np.concatenate([x, 1 - np.arange(2000, dtype=np.float32) * 2.0**-24])
    with np.errstate(all="ignore"):
        expected = want(x.astype(np.float64))
    assert ulps(jax.jit(rewrites.REWRITES[name])(x), expected) <= most
    assert ulps(rewrites.REWRITES[name](jnp.asarray(x)), expected) <= most


@pytest.mark.parametrize("name", ["sinh", "cosh"])
def test_hyperbolic_functions_are_finite_as_far_as_they_go(name: str):
    x = np.asarray([88.5, 89.2, -89.2, 90.0], np.float32)
    with np.errstate(over="ignore"):
        expected = getattr(np, name)(x.astype(np.float64)).astype(np.float32).astype(np.float64)
    assert ulps(rewrites.REWRITES[name](jnp.asarray(x)), expected) <= 50


def test_erf_inv_undoes_erf():
    y = np.random.default_rng(0).uniform(-3.5, 3.5, 2000)
    x = np.asarray([math.erf(v) for v in y], np.float32)
    got = np.asarray(rewrites.erf_inv(jnp.asarray(x)), np.float64)
    again = np.asarray([math.erf(v) for v in got])
    slope = 2 / math.sqrt(math.pi) * np.exp(-(got**2))
    inside = np.abs(x) < 1
    error = np.abs(again - x)[inside] / (slope * np.abs(got))[inside]
    assert error.max() < 8 * np.finfo(np.float32).eps
    assert np.isinf(rewrites.erf_inv(jnp.asarray([1, -1], np.float32))).all() and np.isnan(
        rewrites.erf_inv(jnp.float32(1.5))
    )


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_power(jit: bool, whole: bool):
    random = np.random.default_rng(1)
    x = np.concatenate([numbers(), np.exp(random.uniform(-3, 3, 9000)) * random.choice([-1, 1], 9000)]).astype(
        np.float32
    )
    y = np.concatenate([random.permutation(numbers()), random.normal(size=9000) * 30]).astype(np.float32)
    y = np.round(y) if whole else y
    with np.errstate(all="ignore"):
        expected = np.power(x.astype(np.float64), y.astype(np.float64))
    fn = jax.jit(rewrites.power) if jit else rewrites.power
    assert ulps(fn(jnp.asarray(x), jnp.asarray(y)), expected) <= 2.5


def test_atan2():
    x, y = numbers(), np.random.default_rng(1).permutation(numbers())
    assert ulps(rewrites.atan2(jnp.asarray(y), jnp.asarray(x)), np.arctan2(y.astype(np.float64), x)) <= 4


def test_remainder():
    x = np.random.default_rng(1).normal(size=4000).astype(np.float32) * 1000
    y = np.random.default_rng(2).normal(size=4000).astype(np.float32) * 3
    got = np.asarray(rewrites.remainder(jnp.asarray(x), jnp.asarray(y)), np.float64)
    assert (np.abs(got - np.fmod(x.astype(np.float64), y)) <= 1.2e-7 * np.abs(y)).all()
    got = rewrites.remainder(
        jnp.asarray([5, -5, 5, math.inf, 0], np.float32), jnp.asarray([math.inf, 3, 0, 3, -2], np.float32)
    )
    np.testing.assert_array_equal(got, np.asarray([5, -2, math.nan, math.nan, 0], np.float32))


def _same(got: Any, want: Any) -> None:
    np.testing.assert_array_equal(np.asarray(got), np.asarray(want))


def test_bits():
    x, y = numbers(), np.random.default_rng(1).permutation(numbers())
    away = np.nextafter(x, y)
    ordinary = ~((np.abs(away) < 1.2e-38) & (away != 0))
    _same(np.asarray(rewrites.next_after(jnp.asarray(x), jnp.asarray(y)))[ordinary], away[ordinary])
    n = np.asarray([0, 1, 2, 3, -1, 2**31 - 1, -(2**31), 12345], np.int32)
    _same(rewrites.population_count(jnp.asarray(n)), [bin(int(v) & 0xFFFFFFFF).count("1") for v in n])
    _same(rewrites.leading_zeros(jnp.asarray(n)), [32 - (int(v) & 0xFFFFFFFF).bit_length() for v in n])
    for bits in ((8, 7), (5, 10), (8, 10), (8, 23)):
        # float16's subnormals aside, which XLA takes for 0 there
        ordinary = x[(np.abs(x) > 1e-4) | (x == 0)] if bits[0] == 5 else x
        _same(rewrites.reduce_precision(jnp.asarray(ordinary), *bits), lax.reduce_precision(ordinary, *bits))


def test_rounding_signs_and_whole_powers():
    x = np.asarray([0.5, -0.5, 1.5, 2.5, -2.5, 0.49999997, 8388609.0, -0.2, math.inf, math.nan], np.float32)
    _same(rewrites.round_away(jnp.asarray(x)), lax.round(x, lax.RoundingMethod.AWAY_FROM_ZERO))
    _same(rewrites.sign(jnp.asarray(x)), np.sign(x))
    _same(rewrites.sign(jnp.asarray([0, 7], jnp.uint32)), [0, 1])
    _same(rewrites.is_finite(jnp.asarray(x)), np.isfinite(x))
    for power in (0, 1, 2, 5, 13, -1, -3):
        np.testing.assert_allclose(
            rewrites.integer_power(jnp.asarray(x[:5]), power), x[:5].astype(np.float64) ** power, 1e-6
        )
