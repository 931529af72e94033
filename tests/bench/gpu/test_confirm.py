"""`python -m bench gpu --confirm`: only a whole check without a fault is a reason to choose a backend."""

import json

import pytest

from bench import __main__ as bench
from bench.gpu import confirm

RECORD = {
    "machine": {"device": "NVIDIA H100 80GB HBM3", "chip": "h100", "date": "2026-12-31T10:00:00+00:00"},
    "implementation": "pallas_gpu",
    "complete": True,
    "rows": [
        {"name": "plain", "status": "right", "dtype": "bfloat16"},
        {"name": "pages-of-16", "status": "right", "dtype": "bfloat16"},
        {"name": "8-bits-int8", "status": "right", "dtype": "bfloat16"},
        {"name": "half", "status": "right", "dtype": "float16"},
        {"name": "single", "status": "refused: UnsupportedError: takes 16 bits", "dtype": "float32"},
    ],
}


def _spoilt(**changes):
    return {**RECORD, **changes}


@pytest.fixture
def root(tmp_path):
    return tmp_path


def test_what_was_right_is_confirmed(root, capsys):
    record, table = root / "check.json", root / "gpu.json"
    record.write_text(json.dumps(RECORD))
    other = {"chip": "a100", "backend": "pallas_gpu", "dtype": "bfloat16"}
    old = {"chip": "h100", "backend": "pallas_gpu", "dtype": "bfloat16", "date": "long ago"}
    table.write_text(json.dumps({"entries": ["kept"], "confirmed": [other, old]}))
    assert confirm.run("bench gpu", record, table, root) == 0
    got = json.loads(table.read_text())
    assert got["entries"] == ["kept"]
    assert got["confirmed"][0] == other
    assert [(row["dtype"], row["date"], row["run"]) for row in got["confirmed"][1:]] == [
        ("bfloat16", "2026-12-31", "check.json"),
        ("float16", "2026-12-31", "check.json"),
    ]
    assert [row["passes"] for row in got["confirmed"][1:]] == [
        ["forward", "backward", "pages", "8-bits"],
        ["forward", "backward"],
    ]
    assert "2 dtypes of pallas_gpu confirmed on h100" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (_spoilt(complete=False), "not complete"),
        (_spoilt(machine={"device": "simulator"}), "not of a chip"),
        (
            _spoilt(rows=[*RECORD["rows"], {"name": "odd", "status": "WRONG: out", "dtype": "float16"}]),
            "not all is right: odd",
        ),
        (
            _spoilt(rows=[{"name": "last", "status": "not run: out of time", "dtype": "float16"}]),
            "not all is right: last",
        ),
        (_spoilt(rows=RECORD["rows"][-1:]), "nothing ran"),
    ],
)
def test_anything_else_is_not(record, message, root, capsys):
    path, table = root / "check.json", root / "gpu.json"
    path.write_text(json.dumps(record))
    assert confirm.run("bench gpu", path, table, root) == 2
    assert message in capsys.readouterr().err
    assert not table.exists()


def test_a_record_outside_the_repository_is_none(root, tmp_path_factory, capsys):
    path = tmp_path_factory.mktemp("elsewhere") / "check.json"
    path.write_text(json.dumps(RECORD))
    assert bench.main(["gpu", "--confirm", str(path), "--table", str(root / "gpu.json")]) == 2
    assert bench.main(["gpu", "--confirm", str(root / "none.json"), "--table", str(root / "gpu.json")]) == 2
    assert capsys.readouterr().err.count("\n") == 2
