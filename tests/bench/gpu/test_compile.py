"""`python -m bench gpu --compile`: calls whose sizes no tile divides, compiled for GPUs that are not there."""

import json

import pytest

from bench.gpu import _compile, _tools
from bench.gpu._check_cases import CHECKS
from tests.bench.gpu.fakes import COMMAND

AWKWARD = ["everything", "dense-mask"]
"""Vectors along either axis and tables of heads; and what every tile has a part of, in shared memory beside the rest."""


def test_a_line_for_each(tmp_path, capsys):
    assert _compile.run(CHECKS[:2], ["a100", "h100"], tmp_path, COMMAND) == 0
    printed = capsys.readouterr().out
    assert printed.count("compiled") == 4
    rows = json.loads((tmp_path / "compile.json").read_text())["rows"]
    assert [(row["chip"], row["name"]) for row in rows] == [(c, x.name) for c in ("a100", "h100") for x in CHECKS[:2]]


@pytest.mark.skipif(bool(_tools.obstacle()), reason=f"nothing compiles for GPUs here: {_tools.obstacle()}")
@pytest.mark.gpu
@pytest.mark.parametrize("chip", ["l4", "h100", "b200"])
def test_every_generation_takes_lengths_that_no_tile_divides(chip, tmp_path):
    checks = [check for check in CHECKS if check.name in AWKWARD]
    assert len(checks) == len(AWKWARD)
    assert _compile.run(checks, [chip], tmp_path) == 0
