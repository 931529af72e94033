"""The table, and figures next to their targets."""

import dataclasses
import math

import pytest

from bench._report import header, line
from bench.cpu import _cases, _report
from bench.cpu._cases import Case
from tests.bench.cpu.recorded import recorded, row


def test_table_is_aligned_and_says_what_was_skipped():
    case = Case("segments", 16384, 128, "fwdbwd", b=1, h=1)
    columns = _report.columns(["jattn", "torch", "jax"], baseline={case.name: 0.2})
    head, slow = header(columns), line(columns, row(case, 0.1, 12.5))
    wrong = line(columns, dataclasses.replace(row(case, 0.1, 12.5, 1.0), wrong=["torch"]))
    assert len(head) == len(slow)
    for title, cell in [("jattn ms", "100"), ("torch ms", "12500"), ("torch/jattn", "125x"), ("was/now", "2.00x")]:
        end = head.index(title) + len(title)
        assert slow[:end].endswith(f" {cell}")
    assert slow[: head.index("jax ms") + len("jax ms")].endswith(" -")
    assert slow.split()[-3:] == ["3/3/-", "1.5e-06", "2.00x"]
    assert "WRONG: torch" in wrong


def test_findings_stand_next_to_their_targets():
    rows = [*recorded(), row(Case("full", 32768, 64, "fwd", b=1, h=1), 0.1, 0.05)]
    got = {one.label: one for one in _report.findings(rows)}
    assert got["torch / jattn, geometric mean, forward (57 cases)"].value == pytest.approx(0.5 ** (1 / 57))
    assert got["torch / jattn, geometric mean, forward+backward (56 cases)"].value == pytest.approx(2.0)
    assert got["torch / jattn, geometric mean, causal (28 cases)"].value == pytest.approx(math.sqrt(2.0))
    assert got["torch / jattn, worst case: full-t32768-d64-fwd"][1:] == (0.5, 0.8)
    assert got["jax.nn / jattn, geometric mean, t >= 2048 (48 cases)"][1:] == (pytest.approx(8.0), 5.0)
    text = " ".join(_report.summary(list(got.values())).split())
    assert "0.500x target >= 0.800x: MISSED" in text
    assert "8.00x target >= 5.00x: met" in text


def test_named_cases_stand_next_to_their_targets():
    named = [row(case, 0.1, 0.09, 0.08) for case in _cases.named_cases()]
    got = _report.findings(named)
    text = " ".join(_report.summary(got).split())
    assert "torch / jattn, decode-fwd 0.900x" in text
    assert "torch / jattn, geometric mean, small ones (8 cases) 0.900x target >= 0.800x: met" in text
    assert "jax.nn / jattn, worst case: additive-fwd 0.800x target >= 1.00x: MISSED" in text
    slow = [dataclasses.replace(x, seconds={"jattn": [0.5]}) if x.case.group == "entmax15" else x for x in named]
    text = " ".join(_report.summary(_report.sparse_limits(slow)).split())
    assert "sparsemax / softmax, forward 1.00x target <= 4.00x: met" in text
    assert "entmax15 / softmax, forward + backward 5.00x target <= 4.00x: MISSED" in text


def test_findings_of_nothing():
    assert _report.summary(_report.findings([])) == ""
