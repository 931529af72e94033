"""A worker's answers: what was refused leaves it as good as before, what failed in another way does not."""

import pytest

from bench.gpu import _worker


def test_what_nobody_knows_is_echoed():
    assert _worker.answer({"stage": "echo", "n": 1}) == {"echo": {"stage": "echo", "n": 1}}


def test_an_unexpected_error_poisons_and_brings_its_trace(capsys):
    got = _worker.answer({"stage": "raise"})
    assert (got["error"], got["poisoned"]) == ("RuntimeError: INTERNAL: a rehearsed error", True)
    assert "_rehearsed" in got["trace"]
    assert "a rehearsed error" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ({"stage": "time", "case": {}, "runner": "jattn"}, "TypeError"),
        (
            {"stage": "time", "case": dict(ask="causal", b=1, t=16, h=2, d=8, direction="fwd"), "runner": "nobody"},
            "KeyError",
        ),
    ],
)
def test_a_refusal_poisons_nothing(request_, error):
    got = _worker.answer(request_)
    assert got["error"].startswith(error)
    assert got["poisoned"] == ("trace" in got) == (error == "KeyError")
