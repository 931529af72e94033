"""What is made of a step's time."""

import json

import pytest

from bench.decode._cases import Case
from bench.decode._rows import Row

CASE = Case("contiguous", 8, 1024)


def test_a_row_without_a_time_has_no_figures():
    row = Row(CASE, "v5e", "ragged", None, 0.5, error="no")
    assert (row.ratio, row.tokens) == (None, None)


def test_json_has_the_figures_that_are_made_of_it():
    got = json.loads(json.dumps(Row(CASE, "cpu", "jattn", 2.0, 0.5).as_json()))
    assert (got["name"], got["case"]["b"], got["ratio"]) == ("contiguous-b8-fill1024", 8, 4.0)
    assert got["tokens_per_second"] == pytest.approx(4000)
