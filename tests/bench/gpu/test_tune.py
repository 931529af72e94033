"""`python -m bench gpu --tune`: candidates, and the table that they fill."""

import dataclasses
import importlib.util
import json

import pytest
from jattn_kernels import tables

from bench.gpu import _runners, tune
from bench.gpu._cases import Case
from tests.bench.gpu.fakes import COMMAND

FACTS = {"device": "NVIDIA H100 80GB HBM3", "chip": "h100"}
CASE = Case("causal", 1, 4096, 16, 64, "fwdbwd")


def test_what_is_faster_goes_into_the_table(tmp_path):
    table = tmp_path / "gpu.json"
    kept = {
        "chip": "a100",
        "d": 64,
        "t": 1,
        "mask": "full",
        "direction": "forward",
        "sizes": {},
        "milliseconds": 1.0,
        "pairs": 1,
    }
    table.write_text(
        json.dumps({"entries": [kept], "confirmed": ["as it was"], "tuned": {"a100": {"date": "long ago"}}})
    )
    assert tune.run([CASE], FACTS, tmp_path, table=table, command=COMMAND) == 0
    document = json.loads(table.read_text())
    assert document["entries"][0] == kept
    assert document["confirmed"] == ["as it was"]
    assert document["tuned"]["a100"] == {"date": "long ago"}
    assert document["tuned"]["h100"]["device"] == FACTS["device"]
    assert len(document["tuned"]["h100"]["date"]) == 10
    got = {
        row["direction"]: tables.Entry(**row) for row in document["entries"] if row["chip"] == "h100"
    }  # as the kernels read it
    assert list(got) == ["forward", "queries"]  # of keys nothing is faster than what a call takes
    assert got["forward"].sizes == {"rows": 128, "columns": 64, "steps": 2, "piece": 64, "height": 64}
    assert got["forward"].milliseconds == 3.0 / 16
    assert got["queries"].sizes["piece"] == 16
    assert got["queries"].milliseconds == 32 / 16  # with that of keys, without its forward
    assert (got["forward"].mask, got["forward"].pairs) == ("causal", 4096 * 4097 // 2)
    tried = json.loads((tmp_path / "tune.json").read_text())["tried"]
    assert any(one["error"] == "ValueError: too small" for one in tried)


def test_a_list_of_entries_is_a_table_too(tmp_path):
    table = tmp_path / "gpu.json"
    assert tune.read(table) == {}
    table.write_text(json.dumps([{"chip": "a100", "d": 64, "t": 1, "mask": "full", "direction": "forward"}]))
    assert list(tune.read(table)) == [("a100", 64, 1, "full", "forward")]


def test_nothing_ran(tmp_path, capsys):
    assert tune.run([CASE], FACTS, tmp_path, table=tmp_path / "gpu.json", command=COMMAND, stage_limit=0) == 1
    assert not (tmp_path / "gpu.json").exists()


def test_a_gpu_without_a_name_is_not_tuned(tmp_path, capsys):
    assert tune.run([CASE], {"device": "NVIDIA Q1", "chip": None}, tmp_path, command=COMMAND) == 2
    assert "NVIDIA Q1 is not in jattn_kernels.chips" in capsys.readouterr().out


def test_masks_are_those_of_the_tables():
    assert set(tune.MASKS) == set(tables.MASKS)
    assert {case.mask for case in tune.cases()} == set(tables.MASKS)
    for d in (64, 128, 256):
        assert all(len(got) >= 6 for got in tune.candidates(d).values())


@pytest.mark.skipif(importlib.util.find_spec("jattn_kernels.gpu") is None, reason="there are no GPU kernels")
@pytest.mark.parametrize("height", [64, 128])
@pytest.mark.parametrize("d", [64, 128, 256])
def test_candidates_are_sizes(d, height):
    """What is tried can be asked for."""
    for direction, got in tune.candidates(d, height).items():
        for sizes in got:
            given = getattr(_runners.backend_with({direction: sizes}).settings, direction)
            assert dataclasses.asdict(given) == sizes
