"""What the TPU benchmark estimates, and the targets."""

import dataclasses

import numpy as np
import pytest

from bench.tpu import _cases
from bench.tpu._cases import Case


def test_cases_cover_what_is_promised():
    got = _cases.cases()
    assert len({case.name for case in got}) == len(got) == 4 * 2 * (4 + 4 + 1)
    assert {case.chip for case in got} == {"v5e", "v5p", "v6e", "tpu7x"}
    assert set(_cases.QUICK) < {case.name for case in got}
    targets = {(case.mask, case.t): case.target for case in got}
    assert {targets["full", t] for t in (2048, 4096, 8192, 16384)} == {1.0}
    assert [targets["causal", t] for t in (2048, 4096, 8192, 16384)] == [0.80, 0.85, None, 0.95]
    assert targets["window", 16384] == 0.9
    of_units = {(case.chip, case.mask, case.d): case.utilisation_target for case in got}
    assert {key: value for key, value in of_units.items() if value} == {
        ("v5p", "full", 128): 0.93,
        ("v5e", "full", 128): 0.85,
    }


@pytest.mark.parametrize("mask", _cases.MASKS)
@pytest.mark.parametrize("t", [64, 1500])
def test_attended_pairs_agree_with_brute_force(mask, t):
    i, j = np.mgrid[:t, :t]
    attend = {"full": i >= 0, "causal": j <= i, "window": (j <= i) & (j > i - _cases.WINDOW)}[mask]
    case = Case("v5e", mask, 2, 3, t, 64, "fwdbwd")
    assert _cases.attended_pairs(case) == attend.sum()
    assert case.flops == 4 * 64 * 6 * attend.sum() * 3.5


@pytest.mark.parametrize("case", _cases.cases(), ids=lambda case: case.name)
def test_fewer_heads_are_walked_evenly(case):
    walked = case.walked()
    assert (walked.b * walked.h) % 2 == 0
    assert case.b * case.h % (walked.b * walked.h) == 0
    assert dataclasses.replace(walked, b=case.b, h=case.h) == case
