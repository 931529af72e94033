"""`python -m bench scale`: what it prints and writes, and when its status is not 0."""

import json

import pytest

from bench.scale import command
from bench.scale._hlo import Permute
from bench.scale._pods import PODS, Compiled

CHOSEN = ["--t", "1048576", "--mask", "causal", "--filter", "h32-g8-fwd-ring"]


def test_predictions(tmp_path, capsys):
    assert command.main([*CHOSEN, "--chip", "v5e,h100", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("v5e ") and "ring, zig-zag" in line]
    assert [line.split("zig-zag")[1].split()[:4] for line in lines] == [
        ["256", "1", "x", "256"],
        ["256", "8", "x", "32"],
    ]
    assert "by ring, zig-zag over 8 x 32, target >= 90% met" in printed
    assert "by ring, zig-zag over 1 x 256, target >= 90% MISSED" in printed
    assert "h100: more than 8 are left out" in printed
    document = json.loads((tmp_path / "scale.json").read_text())
    assert {row["chip"] for row in document["rows"]} == {"v5e", "h100"}
    for row in document["rows"]:
        assert len({len(column) for column in row["predictions"].values()}) == 1
    assert (tmp_path / "scale.png").stat().st_size > 10_000
    assert (tmp_path / "scale.txt").read_text() in printed


def test_nothing_chosen(tmp_path, capsys):
    assert command.main(["--filter", "v3", "--out", str(tmp_path)]) == 2
    assert "no case matches" in capsys.readouterr().err


GIB = 2**30
SENDS = Permute("start", "body", True, True, ("kernel",), 8)


@pytest.mark.parametrize(
    ("permute", "memory", "status", "says"),
    [
        (SENDS, 2 * GIB, 0, "asynchronous"),
        (SENDS._replace(asynchronous=False), 2 * GIB, 1, "SYNCHRONOUS"),
        (SENDS._replace(encloses=()), 2 * GIB, 1, "SYNCHRONOUS"),
        (SENDS._replace(loop=False), 2 * GIB, 1, "no loops"),
        (SENDS, 17 * GIB, 1, "TOO MUCH"),
        (None, 0, 1, "no program within 5 s"),
    ],
)
def test_compiled_programs(permute, memory, status, says, tmp_path, capsys):
    name = next(iter(PODS))
    answer = Compiled(name, 3.0, [permute], memory, GIB) if permute else "no program within 5 s"
    arguments = ["--compile", "--pod", name, "--out", str(tmp_path)]
    assert command.main(arguments, obstacle=lambda name: None, compiled=lambda *_: [(name, answer)]) == status
    assert says in capsys.readouterr().out
    (program,) = json.loads((tmp_path / "pods.json").read_text())["programs"]
    assert program["name"] == name


def test_what_cannot_be_compiled_here(tmp_path, capsys):
    obstacle = lambda name: "libtpu not installed" if name.startswith("v5e") else None
    compiled = lambda names, seconds: [(name, "no") for name in names]
    arguments = ["--compile", "--pod", "v5e-4x4-ring,h100-8-ring", "--out", str(tmp_path)]
    assert command.main(arguments, obstacle=obstacle, compiled=compiled) == 1
    printed = capsys.readouterr().out
    assert "v5e-4x4-ring is left out: libtpu not installed" in printed
    assert "h100-8-ring: no" in printed
    assert command.main(["--compile", "--pod", "v5e-4x4-ring", "--out", str(tmp_path)], obstacle=obstacle) == 2
    assert "libtpu not installed" in capsys.readouterr().err
