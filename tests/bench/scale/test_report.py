"""The table of predictions, its summary and its plot."""

import json

from bench._report import header, line
from bench.scale import _report
from bench.scale._cases import WAYS, Case
from bench.scale._predict import Prediction

CASE = Case("v5e", 32, 8, 2**20, "causal", "fwd", WAYS[0], False)


def row(*efficiencies: float, case: Case = CASE) -> _report.Row:
    """Predictions for 4, 16, 64 .. chips."""
    each = [Prediction(4**n, 1, 4**n, 1.0, 2**20, 0.5, 1.0, 1.5, x) for n, x in enumerate(efficiencies, 1)]
    return _report.Row(case, each)


def test_what_a_row_cannot_be_on_is_a_dash():
    got = line(_report.COLUMNS, row(0.95, 0.5))
    assert len(got) == len(header(_report.COLUMNS))
    assert got.split()[-4:] == ["95%", "50%", "-", "-"]


def test_the_summary_holds_the_best_way_at_the_most_chips_against_the_target():
    better = Case(**{**vars(CASE), "way": WAYS[1]})
    text = _report.summary([row(0.99, 0.5), row(0.98, 0.91, case=better)])
    assert "16 chips" in text
    assert "91% by ring, zig-zag over 1 x 16, target >= 90% met" in text
    assert "MISSED" in _report.summary([row(0.99, 0.5)])


def test_json_has_a_column_for_each_figure():
    got = json.loads(json.dumps(row(0.123456, 0.5).as_json()))
    assert got["predictions"]["efficiency"] == [0.1235, 0.5]
    assert got["predictions"]["chips"] == [4, 16]


def test_only_causal_rows_are_drawn(tmp_path):
    _report.plot([row(0.9, case=Case(**{**vars(CASE), "mask": "full"}))], tmp_path / "full.png")
    assert not (tmp_path / "full.png").exists()
    _report.plot([row(0.9, 0.8)], tmp_path / "causal.png")
    assert (tmp_path / "causal.png").read_bytes().startswith(b"\x89PNG")
