"""`python -m bench decode`: what it writes, and its errors."""

import json

import pytest

from bench.decode import _cpu, command


def test_a_run_measures_and_writes(tmp_path, capsys):
    arguments = ["--no-tpu", "--n", "64", "--fill", "32", "--b", "1", "--kind", "contiguous", "--rounds", "1"]
    assert command.main([*arguments, "--out", str(tmp_path)], bandwidth=lambda: 1e9) == 0
    document = json.loads((tmp_path / "decode.json").read_text())
    assert document["complete"]
    assert {row["contender"] for row in document["rows"]} == set(_cpu.CONTENDERS)
    assert (tmp_path / "decode.png").stat().st_size > 1000
    assert "peer over jattn" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--no-tpu", "--filter", "nothing"], ["--no-cpu", "--no-tpu"]])
def test_nothing_chosen_is_one_line(arguments, tmp_path, capsys):
    assert command.main([*arguments, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "bench decode: no case matches; names look like paged64-b8-fill1024\n"


def test_a_gpu_needs_its_compiler(tmp_path, capsys):
    arguments = ["--no-cpu", "--chips", "h100", "--quick", "--out", str(tmp_path)]
    assert command.main(arguments, obstacle=lambda: "no ptxas") == 2
    assert capsys.readouterr().err == "bench decode: no ptxas\n"
