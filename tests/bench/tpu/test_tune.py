"""`python -m bench tune tpu`: candidates, and the table that they fill."""

import json

import pytest
from jattn_kernels import tables
from jattn_kernels.chips import TPUS
from jattn_kernels.tpu.sizes import TileSizes

from bench.tpu import tune
from bench.tpu._cases import Case
from bench.tpu._compile import Compiler
from tests.bench.tpu.stand_in import StandIn, none_missing


@pytest.mark.parametrize("case", [Case(chip, mask, 1, 16, 16384, d, "fwdbwd") for chip in TPUS for mask in ("full", "causal", "window") for d in (64, 256)], ids=str)  # fmt: skip
def test_candidates_are_sizes(case):
    for candidates in tune.candidates(case).values():
        assert len(candidates) > 2
        for sizes in candidates:
            TileSizes(**sizes)


class Refusing(Compiler):
    """A compiler for which everything is too large."""

    def count(self, *_):
        return {"error": "RuntimeError: too large"}


class Unasked(Compiler):
    """A compiler that is not to be asked."""

    def count(self, *_):
        pytest.fail("estimated again")


def test_tune_fills_the_table_and_resumes(tmp_path, capsys):
    table = tmp_path / "tables" / "tpu.json"
    arguments = ["--chip", "v5e", "--mask", "full", "--t", "2048", "--table", str(table)]
    assert tune.main(arguments, compiler=StandIn, missing=none_missing) == 0
    rows = json.loads(table.read_text())
    got = {row["direction"]: row for row in rows}
    assert got["forward"]["sizes"]["scheduler"]
    assert got["backward"]["sizes"]["step"] == 256
    assert {(row["chip"], row["d"], row["t"], row["mask"], row["pairs"]) for row in rows} == {
        ("v5e", 128, 2048, "full", 2048**2)
    }
    for row in rows:  # the table is what the kernels read
        TileSizes(**tables.Entry(**row).sizes)
    assert tune.main(arguments, compiler=Unasked, missing=none_missing) == 0
    assert "2 rows in" in capsys.readouterr().out
    assert tune.main([*arguments, "--again"], compiler=Refusing, missing=none_missing) == 2
    assert "no candidate compiled for v5e-full-t2048-d128-fwdbwd" in capsys.readouterr().err
