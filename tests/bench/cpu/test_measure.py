"""A case measured: results compared, times recorded."""

import dataclasses

import numpy as np
import pytest

from bench.cpu import _cases, _contenders, _measure
from bench.cpu._cases import Case
from tests.bench.cpu.recorded import row


def constant(name: str, value: float, reason: str = "") -> _contenders.Contender:
    """A contender whose result is one number."""
    arrays = [np.full((1, 2, 1, 1), value)]
    return _contenders.Contender(name, lambda case, inputs: lambda: arrays, lambda result: result, lambda case: reason)


def test_measure_checks_times_and_skips():
    contenders = [constant("jattn", 1.0), constant("torch", 1.1), constant("jax", 1.0, "too large")]
    got = _measure.measure(Case("causal", 16, 4, "fwd", b=1, h=1), contenders, budget=0.0, rounds=3)
    assert got.wrong == ["torch"]
    assert got.differences == pytest.approx({"torch": 0.1})
    assert got.skipped == {"jax": "too large"}
    assert {name: len(times) for name, times in got.seconds.items()} == {"jattn": 3, "torch": 3}


def test_nan_agrees_with_nothing():
    nan, one = [np.array([np.nan])], [np.array([1.0])]
    assert not _measure.compare(nan, one)[1]
    assert not _measure.compare(one, nan)[1]
    assert _measure.compare(one, one) == (0.0, True)


def test_row_medians_ratios_and_speeds():
    got = row(_cases.cases()[0], 0.5, 0.25)
    assert (got.median("jattn"), got.median("jax")) == (0.5, None)
    assert (got.ratio("torch"), got.ratio("jax")) == (0.5, None)
    assert got.gflops("torch") == 4.0


def test_quartiles():
    got = dataclasses.replace(
        row(_cases.cases()[0], 0.1, 0.1), seconds={"jattn": [0.1, 0.2, 0.3, 0.4, 0.5], "torch": [1.0]}
    )
    assert got.quartiles("jattn") == pytest.approx((0.2, 0.4))
    assert got.quartiles("torch") == (1.0, 1.0)
    assert got.quartiles("jax") is None
