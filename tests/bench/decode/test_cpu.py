"""Steps measured on this machine: no time is asserted."""

import jax.numpy as jnp

from bench.decode import _cpu
from tests.bench.decode.small import small


def test_a_row_for_each_contender_and_the_limit_of_its_bytes():
    case = small("contiguous")
    rows = {row.contender: row for row in _cpu.measure(case, speed=1e9, budget=0.0, rounds=1)}
    assert set(rows) == set(_cpu.CONTENDERS)
    assert {row.limit for row in rows.values()} == {1e3 * case.bytes(4) / 1e9}
    assert not any(row.error for row in rows.values())
    assert all(row.milliseconds for row in rows.values())


def test_numbers_of_eight_bits_have_scales_above_zero():
    q, k, _, *scales = _cpu.arrays(small("int8"))
    assert (q.dtype, k.dtype) == (jnp.float32, jnp.int8)
    assert all((x > 0).all() for x in scales)


def test_bandwidth_is_bytes_over_the_best_time():
    assert 1e6 < _cpu.bandwidth(2**16) < 1e14  # a unit wrong by a thousand is outside
