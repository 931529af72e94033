"""Rows of kernels, what is said of them, and the plots."""

import pytest

from bench._report import header, line
from bench.gpu import _report
from bench.gpu._cases import Case
from bench.gpu._contenders import JATTN
from bench.gpu._time import TimedRow, Timing
from tests.bench.gpu.fake_worker import answer

CASE = Case("causal", 2, 4096, 8, 128, "fwdbwd", "h100")


def _rows():
    request = {"stage": "static", "case": {"ask": CASE.ask, "d": CASE.d, "direction": CASE.direction}}
    return _report.static_rows(CASE, JATTN, answer(request))


def test_a_row_for_each_kernel_with_its_role():
    assert [(row.role, row.local) for row in _rows()] == [("forward", 0), ("dkv", 2)]
    assert all(row.estimate is not None for row in _rows())


def test_a_kernel_that_stands_in_a_branch_too_has_one_row():
    first, *_ = answer({"stage": "static", "case": {"ask": CASE.ask, "d": CASE.d, "direction": "fwd"}})["kernels"]
    assert len(_report.static_rows(CASE, JATTN, {"kernels": [first, first]})) == 1


def test_columns_are_as_wide_as_their_titles():
    columns = _report.static_columns()
    assert {len(line(columns, row)) for row in _rows()} == {len(header(columns))}


def test_the_summary_names_what_spills_and_counts_what_failed():
    failed = _report.StaticRow(CASE, "mgpu", error="RuntimeError: no")
    text = _report.static_summary([*_rows(), failed])
    assert "2 kernels compiled, 1 programs did not" in text
    assert "local loads or stores in a hot loop: jattn h100-causal-d128-dkv" in text
    assert _report.static_failure(failed).endswith("fwdbwd: RuntimeError: no")


@pytest.mark.parametrize("nothing", [True, False])
def test_plots_are_of_what_has_figures(nothing, tmp_path):
    of_kernels, of_times = tmp_path / "static.png", tmp_path / "time.png"
    _report.plot_static([_report.StaticRow(CASE, "mgpu", error="no")] if nothing else _rows(), of_kernels)
    timed = [
        TimedRow(Case("causal", 1, t, 16, 64 if nothing else 128, "fwd"), {"jattn": Timing([1.0])})
        for t in (1024, 2048)
    ]
    _report.plot_times(timed, ["jattn"], "a GPU", of_times)
    for path in (of_kernels, of_times):
        assert path.exists() != nothing
