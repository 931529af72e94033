"""`python -m bench gpu`: its errors, and its stages."""

import functools
import json

import pytest

from bench import __main__ as bench
from bench.gpu import _check, _static, _time, _tools, command, tune
from bench.gpu._check_cases import Check
from tests.bench.gpu.fakes import COMMAND


@pytest.fixture
def device(monkeypatch):
    """A machine with an H100, whose worker answers at once."""
    monkeypatch.setattr(_tools, "too_old", lambda: None)
    monkeypatch.setattr(_tools, "obstacle", lambda: None)
    monkeypatch.setattr(command, "device_facts", functools.partial(command.device_facts, COMMAND))
    for module in (_check, _time, tune, _static):
        monkeypatch.setattr(module, "run", functools.partial(module.run, command=COMMAND))


def test_without_a_gpu_one_line_says_so(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(_tools, "too_old", lambda: None)
    assert bench.main(["gpu", "--out", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert printed.err.startswith("bench gpu: no GPU here (")
    assert printed.err.endswith("); --static works without one, --rehearse as well\n")


def test_an_old_jax_is_said(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(_tools, "too_old", lambda: "the GPU kernels need jax 0.11")
    for arguments in ([], ["--static"], ["--check"], ["--rehearse"]):
        assert bench.main(["gpu", *arguments, "--out", str(tmp_path)]) == 2
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
def test_errors_are_one_line(arguments, message, capsys, device, tmp_path):
    try:
        status = bench.main(["gpu", *arguments, "--out", str(tmp_path)])
    except SystemExit as stop:
        status = stop.code
    printed = capsys.readouterr()
    assert (status, printed.out, printed.err.count("\n")) == (2, "", 1)
    assert printed.err.startswith(message)


def test_missing_packages_are_a_hint(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(command, "missing", lambda modules: [name for name in modules if name == "matplotlib"])
    assert bench.main(["gpu", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "bench gpu: matplotlib not installed: pip install -e '.[bench]'\n"


def test_all_stages_in_order(capsys, device, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "CHECKS", [Check("causal-t4096-d64", lambda x: {})])  # the filter is of all stages
    arguments = ["gpu", "--filter", "causal-t4096-d64", "--runners", "jattn,torch"]
    assert bench.main([*arguments, "--table", str(tmp_path / "gpu.json"), "--out", str(tmp_path)]) == 0
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


def test_one_stage_alone(capsys, device, tmp_path):
    assert bench.main(["gpu", "--check", "--filter", "bias-r", "--out", str(tmp_path)]) == 0
    assert "1 cases: 1 right" in capsys.readouterr().out
    assert not (tmp_path / "time.json").exists()


def test_interpreting_is_a_rehearsal(capsys, device, tmp_path, monkeypatch):
    monkeypatch.setenv("JATTN_INTERPRET", "1")
    monkeypatch.setattr(_check, "rehearsal", lambda: [Check("plain", lambda x: {}), Check("crash", lambda x: {})])
    assert bench.main(["gpu", "--check", "--out", str(tmp_path)]) == 0
    assert "2 cases: 2 right" in capsys.readouterr().out
    assert json.loads((tmp_path / "rehearsal.json").read_text())["machine"]["device"] == "simulator"


def test_static_of_one_chip(capsys, device, tmp_path):
    arguments = ["gpu", "--static", "--chip", "h100", "--peers", "mgpu", "--filter", "plain-t4096-d64"]
    assert bench.main([*arguments, "--out", str(tmp_path)]) == 0
    assert "4 kernels compiled, 0 programs did not" in capsys.readouterr().out
