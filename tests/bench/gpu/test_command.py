"""`python -m bench gpu`: its errors, and its stages."""

import dataclasses
import json

import pytest

from bench.gpu import command
from bench.gpu._check_cases import Check
from bench.gpu.command import HERE, Surroundings
from tests.bench.gpu.fakes import COMMAND

DEVICE = Surroundings(too_old=lambda: None, obstacle=lambda: None, worker=COMMAND)
"""A machine with an H100, whose worker answers at once."""


def test_without_a_gpu_one_line_says_so(capsys, tmp_path):
    new_enough = dataclasses.replace(HERE, too_old=lambda: None)
    assert command.main(["--out", str(tmp_path)], new_enough) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert printed.err.startswith("bench gpu: no GPU here (")
    assert printed.err.endswith("); --static works without one, --rehearse as well\n")


def test_an_old_jax_is_said(capsys, tmp_path):
    reason = lambda: "the GPU kernels need jax 0.11"
    old = dataclasses.replace(HERE, too_old=reason, obstacle=reason)
    for arguments in ([], ["--static"], ["--compile"], ["--check"], ["--rehearse"]):
        assert command.main([*arguments, "--out", str(tmp_path)], old) == 2
        printed = capsys.readouterr()
        assert (printed.out, printed.err.count("\n")) == ("", 1)
        assert printed.err.startswith("bench gpu: the GPU kernels need jax 0.11")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--static", "--filter", "nothing"],
            "bench gpu: no case matches; names look like h100-causal-t4096-d128-fwdbwd",
        ),
        (["--static", "--chip", "v100"], "bench gpu: argument --chip: 'v100' is not a comma-separated choice of a100,"),
        (
            ["--time", "--runners", "nobody"],
            "bench gpu: argument --runners: 'nobody' is not a comma-separated choice of",
        ),
    ],
)
def test_errors_are_one_line(arguments, message, capsys, tmp_path):
    try:
        status = command.main([*arguments, "--out", str(tmp_path)], DEVICE)
    except SystemExit as stop:
        status = stop.code
    printed = capsys.readouterr()
    assert (status, printed.out, printed.err.count("\n")) == (2, "", 1)
    assert printed.err.startswith(message)


def test_missing_packages_are_a_hint(capsys, tmp_path):
    without = dataclasses.replace(HERE, missing=lambda modules: [name for name in modules if name == "matplotlib"])
    assert command.main(["--out", str(tmp_path)], without) == 2
    assert capsys.readouterr().err == "bench gpu: matplotlib not installed: pip install -e '.[bench]'\n"


def test_all_stages_in_order(capsys, tmp_path):
    here = dataclasses.replace(DEVICE, checks=[Check("causal-t4096-d64", lambda x: {})])  # the filter is of all stages
    arguments = ["--filter", "causal-t4096-d64", "--runners", "jattn,torch"]
    assert command.main([*arguments, "--table", str(tmp_path / "gpu.json"), "--out", str(tmp_path)], here) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("device NVIDIA H100 80GB HBM3, chip h100, count 1, driver ")
    assert (
        printed.index("1 cases: 1 right")
        < printed.index("torch / jattn: 2.00")
        < printed.index("2 faster than what was taken")
    )
    for name in ("check", "time", "tune"):
        document = json.loads((tmp_path / f"{name}.json").read_text())
        assert document["machine"]["device"] == "NVIDIA H100 80GB HBM3"


def test_one_stage_alone(capsys, tmp_path):
    assert command.main(["--check", "--filter", "bias-r", "--out", str(tmp_path)], DEVICE) == 0
    assert "1 cases: 1 right" in capsys.readouterr().out
    assert not (tmp_path / "time.json").exists()


def test_interpreting_is_a_rehearsal(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("JATTN_INTERPRET", "1")
    here = dataclasses.replace(DEVICE, rehearsal=lambda: [Check(name, lambda x: {}) for name in ("plain", "crash")])
    assert command.main(["--check", "--out", str(tmp_path)], here) == 0
    assert "2 cases: 2 right" in capsys.readouterr().out
    assert json.loads((tmp_path / "rehearsal.json").read_text())["machine"]["device"] == "simulator"


def test_static_of_one_chip(capsys, tmp_path):
    arguments = ["--static", "--chip", "h100", "--peers", "mgpu", "--filter", "plain-t4096-d64"]
    assert command.main([*arguments, "--out", str(tmp_path)], DEVICE) == 0
    assert "4 kernels compiled, 0 programs did not" in capsys.readouterr().out
