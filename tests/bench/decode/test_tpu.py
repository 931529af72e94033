"""Steps estimated from counted cycles."""

import pytest

from bench.decode import _tpu
from bench.decode._cases import Case

COUNTS = {"cycles": 1_500_000, "startup": 0, "dma_stall": 0, "matrix_stall": 0, "dma_bytes": 0, "products": 1}


def test_an_estimate_is_kernels_and_what_is_around_them():
    case = Case("paged", 8, 8192, page=64)
    answers = {
        "jattn": {"kernels": {"a": COUNTS, "b": COUNTS}, "between_bytes": 819_000_000},
        "ragged": {"error": "MosaicError: no"},
    }
    count = lambda walked, name, setting: answers.get(setting["contender"], answers["jattn"])
    rows = {row.contender: row for row in _tpu.estimate(case, "v5e", count)}
    assert rows["jattn"].milliseconds == pytest.approx(2 * 1.0 + 1.0)
    assert rows["jattn"].tokens == pytest.approx(8e3 / 3)
    assert rows["jattn"].ratio == pytest.approx(3 / (1e3 * case.bytes(2) / 819e9))
    assert rows["ragged"].milliseconds is None and "no" in rows["ragged"].error


def test_only_pages_have_peers():
    assert _tpu.contenders(Case("contiguous", 8, 1024)) == ("jattn",)
    assert len(_tpu.contenders(Case("paged", 8, 1024, page=16))) == 3
