"""Positions and lengths: integers of 32 bits, whose sums do not wrap around."""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import masks
from jattn._terms import Operand, positions
from tests.tolerances import assert_close

BACKENDS = ["blockwise", "pallas_tpu", "reference"]


Q, K, V = (np.random.default_rng(n).standard_normal((2, 8, 2, 4)).astype(np.float32) for n in range(3))


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    monkeypatch.setenv("JATTN_INTERPRET", "1")


def _attend(implementation, q: Any = Q, k: Any = K, v: Any = V, **options: Any):
    blocks = (3, 3) if implementation == "blockwise" else None
    return jattn.attention(q, k, v, implementation=implementation, blocks=blocks, **options)


FAR = {
    "right": (lambda: masks.window(7, 2**31 - 1), lambda: masks.window(7, None)),
    "left": (lambda: masks.window(sys.maxsize), lambda: masks.causal()),
    "nearly": (lambda: masks.window(2**31 - 5, 2**31 - 5), lambda: None),
    "both": (lambda: masks.window(2**40, 2**40), lambda: None),
    "traced": (lambda: masks.causal(jnp.int32(2**31 - 1)), lambda: None),
    "traced both": (lambda: masks.window(jnp.int32(2**31 - 1), jnp.int32(2**31 - 1)), lambda: None),
    "traced before": (lambda: masks.causal(jnp.int32(-(2**31))), lambda: masks.prefix(0)),
    "wider": (lambda: masks.causal(np.int64(2**40)), lambda: None),
    "unsigned": (lambda: masks.causal(jnp.uint32(2**32 - 1)), lambda: None),
    "bytes": (lambda: masks.causal(jnp.int8(2)), lambda: masks.causal(2)),
    "length": (lambda: masks.lengths(np.array([2**40, 3])), lambda: masks.lengths(np.array([8, 3]))),
    "prefix": (lambda: masks.prefix(2**40), lambda: None),
    "stride": (lambda: masks.dilated(2**40), lambda: masks.window(0, 0)),
}


@pytest.mark.parametrize("implementation", BACKENDS)
@pytest.mark.parametrize("name", FAR)
def test_sums_of_positions_never_wrap(name, implementation):
    mask, same = FAR[name]
    got = _attend(implementation, mask=mask())
    assert_close(got, _attend(implementation, mask=same()), 1e-6)
    assert_close(jax.jit(lambda q: _attend(implementation, q, mask=mask()))(Q), got, 1e-6)


FAR_AND_NEAR = [0, 1, -1, 5, positions.LAST, -positions.LAST, positions.FAR, -positions.FAR]


@pytest.mark.parametrize("by", FAR_AND_NEAR)
@pytest.mark.parametrize("traced", [False, True])
def test_a_sum_is_the_sum_or_the_end_that_it_passes(by, traced):
    at = np.array([0, 1, 100, positions.LAST - 1, positions.LAST], np.int32)
    got = positions.shifted(jnp.asarray(at), jnp.int32(by) if traced else by)
    wanted = np.clip(at.astype(np.int64) + by, -positions.FAR, positions.FAR)
    np.testing.assert_array_equal(got, wanted)
    if not traced:
        np.testing.assert_array_equal(positions.shifted(at, by), wanted)


def test_centres_that_are_no_integers_stay_as_they_are():
    got = positions.shifted(jnp.array([0.5, jnp.nan]), jnp.int32(positions.FAR))
    np.testing.assert_array_equal(got, np.array([0.5, np.nan], np.float32) + np.float32(positions.FAR))


INTEGERS = {
    "int8": ([-128, 127], [-128, 127]),
    "uint8": ([0, 255], [0, 255]),
    "uint16": ([0, 2**16 - 1], [0, 2**16 - 1]),
    "int32": ([-(2**31), 2**31 - 1], [-positions.FAR, positions.FAR]),
    "uint32": ([0, 2**32 - 1], [0, positions.FAR]),
    "int64": ([-(2**62), 2**62], [-positions.FAR, positions.FAR]),
    "uint64": ([0, 2**64 - 1], [0, positions.FAR]),
}


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_beyond_all_positions_are_the_nearest(dtype):
    given, wanted = INTEGERS[dtype]
    got = positions.int32(np.array(given, dtype))
    assert got.dtype == np.int32
    assert got.tolist() == wanted
    if not dtype.endswith("64"):
        assert positions.int32(jnp.array(given, dtype)).tolist() == wanted


def test_a_number_stays_static_and_an_array_becomes_an_operand():
    assert positions.integer(3, "n") == 3
    assert positions.integer(2**40, "n") == positions.FAR
    assert positions.integer(-(2**40), "n") == -positions.FAR
    held = positions.integer(np.uint8(200), "n")
    assert held == 200
    array = positions.integer(jnp.int8(3), "n")
    assert isinstance(array, Operand) and array.axes == "" and array.array.dtype == jnp.int32
    of_each = positions.lengths([4, 2**40], "n")
    assert isinstance(of_each, Operand) and of_each.axes == "b" and of_each.array.tolist() == [4, positions.FAR]
    empty = positions.lengths(np.zeros(0, int), "n")
    assert isinstance(empty, Operand) and empty.array.shape == (0,)


@pytest.mark.parametrize("wrong", [1.0, True, "3", np.float32(2), np.zeros((2, 2), int), np.zeros(2), 1j])
def test_what_is_no_length_is_named(wrong):
    with pytest.raises((TypeError, ValueError), match=r"^how_many must be"):
        positions.lengths(wrong, "how_many")
