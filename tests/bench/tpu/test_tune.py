"""`python -m bench tune tpu`: candidates, and the table that they fill."""

import json

import pytest
from jattn_kernels import tables
from jattn_kernels.chips import TPUS
from jattn_kernels.tpu.sizes import TileSizes

from bench import __main__ as bench
from bench.tpu import tune
from bench.tpu._cases import Case


@pytest.mark.parametrize("case", [Case(chip, mask, 1, 16, 16384, d, "fwdbwd") for chip in TPUS for mask in ("full", "causal", "window") for d in (64, 256)], ids=str)  # fmt: skip
def test_candidates_are_sizes(case):
    for candidates in tune.candidates(case).values():
        assert len(candidates) > 2
        for sizes in candidates:
            TileSizes(**sizes)


def test_tune_fills_the_table_and_resumes(tmp_path, capsys, stand_in, monkeypatch):
    table = tmp_path / "tables" / "tpu.json"
    arguments = ["tune", "tpu", "--chip", "v5e", "--mask", "full", "--t", "2048", "--table", str(table)]
    assert bench.main(arguments) == 0
    rows = json.loads(table.read_text())
    got = {row["direction"]: row for row in rows}
    assert got["forward"]["sizes"]["scheduler"]
    assert got["backward"]["sizes"]["step"] == 256
    assert {(row["chip"], row["d"], row["t"], row["mask"], row["pairs"]) for row in rows} == {
        ("v5e", 128, 2048, "full", 2048**2)
    }
    for row in rows:  # the table is what the kernels read
        TileSizes(**tables.Entry(**row).sizes)
    monkeypatch.setattr(tune, "estimate", lambda *_: pytest.fail("estimated again"))
    assert bench.main(arguments) == 0
    assert "2 rows in" in capsys.readouterr().out
    monkeypatch.setattr(tune, "estimate", lambda *_: {})
    assert bench.main([*arguments, "--again"]) == 2
    assert "no candidate compiled for v5e-full-t2048-d128-fwdbwd" in capsys.readouterr().err
