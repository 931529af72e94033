"""`python -m bench gpu --check`: what is right, and what becomes of what is not."""

import json

import jax
import numpy as np
import pytest

from bench.gpu import _check
from bench.gpu._check_cases import CHECKS, Check
from tests.bench.gpu.fakes import COMMAND
from tests.tolerances import TOLERANCES

TINY = Check("tiny", lambda x: {}, b=1, t=8, s=8, h=2, g=1, d=16, e=16)


@pytest.mark.parametrize("name", ["everything", "empty-rows", "rewritten-functions"])
def test_another_backend_is_right(name):
    """The comparison itself, on the backend that runs here, at sizes that take a second."""
    check = next(check for check in CHECKS if check.name == name)
    check = Check(name, check.options, check.arrays, b=1, t=40, s=40, h=2, g=1, d=16, e=16, lse=check.lse)
    inputs, cotangents = _check.draw(check)
    got = jax.jit(lambda *x: _check.everything(check, "blockwise", *x))(inputs, cotangents)
    found = _check.errors(check, jax.device_get(got), _check.reference(check, inputs, cotangents))
    assert _check.judge({"errors": found, "same_bits": True})["status"] == "right"
    spoilt = {**got, "dkey": got["dkey"].at[0, 3].add(0.25)}
    found = _check.errors(check, jax.device_get(spoilt), _check.reference(check, inputs, cotangents))
    assert _check.judge({"errors": found, "same_bits": True})["status"] == "WRONG: dkey"


def test_errors_of_infinities_and_nan():
    wanted = {"lse": np.array([-np.inf, 1.0, -np.inf]), "out": np.array([1.0, 3.0]), "dslopes": np.array([0.0, 9.0])}
    got = {"lse": np.array([-np.inf, 1.0, 0.0]), "out": np.array([np.nan, 3.0]), "dslopes": np.array([1.0, 9.0])}
    found = _check.errors(TINY, got, wanted)
    assert found["lse"]["error"] == np.inf
    assert found["out"]["error"] == np.inf
    assert found["dslopes"]["error"] == 0.1  # of the largest
    assert _check.errors(TINY, wanted, wanted)["lse"]["error"] == 0
    assert [found[x]["tolerance"] for x in ("lse", "out", "dslopes")] == [
        TOLERANCES["float16"].value, TOLERANCES["bfloat16"].value, TOLERANCES["bfloat16"].gradient
    ]  # fmt: skip


def test_bits():
    one = {"out": np.array([0.0, 1.0])}
    assert _check.same_bits(one, {"out": np.array([0.0, 1.0])})
    assert not _check.same_bits(one, {"out": np.array([-0.0, 1.0])})


def test_a_run_goes_on_whatever_happens(tmp_path, capsys):
    checks = [
        Check(name, lambda x: {}) for name in ("plain", "causal", "alibi", "segments", "hang", "crash", "raise", "last")
    ]
    status = _check.run(checks, {"device": "none"}, tmp_path, command=COMMAND, stage_limit=500)
    document = json.loads((tmp_path / "check.json").read_text())
    assert document["complete"]
    assert [row["status"] for row in document["rows"]] == [
        "right",
        "WRONG: out",
        "refused: UnsupportedError: takes no slopes",
        "WRONG: other bits the second time",
        "right: it had to fail: no answer in 5 s",
        "right: it had to fail: died with signal SIGSEGV: no message",
        "right: it had to fail: RuntimeError: INTERNAL",
        "right",
    ]
    printed = capsys.readouterr().out
    assert printed.count("\n") == 9
    assert "8 cases: 5 right, 2 WRONG, 1 refused" in printed
    assert status == 1


def test_out_of_time_is_said(tmp_path, capsys):
    assert _check.run([TINY], {}, tmp_path, command=COMMAND, stage_limit=0) == 0
    assert "not run: out of time" in capsys.readouterr().out


def test_the_rehearsal_has_all_that_can_go_wrong():
    checks = _check.rehearsal()
    assert {"hang", "crash", "raise"} < {check.name for check in checks}
    assert all(check.t <= 128 for check in checks if check.name not in _check.FAKES)
