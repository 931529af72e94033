"""What programs cost before they run."""

from bench.cpu import _contenders, _programs, _report
from bench.cpu._cases import Case


def test_programs_are_held_against_their_limits(monkeypatch):
    monkeypatch.setattr(_programs, "trace_seconds", lambda: {"causal": 0.1, "function": 1.5})
    monkeypatch.setattr(
        _programs, "compile_seconds", lambda attend_of: 1.4 if attend_of is _contenders.jattn_attend else 1.0
    )
    text = " ".join(_report.summary(_programs.limits()).split())
    assert "longest trace of a mask, t = 32768: function 1.50s target <= 1.00s: MISSED" in text
    assert "compile time, causal-t2048-d64-fwdbwd 1.40x target <= 1.50x: met" in text


def test_programs_are_timed(monkeypatch):
    monkeypatch.setattr(_programs, "LONG", 256)
    monkeypatch.setattr(_programs, "COMPILED", Case("causal", 64, 8, "fwd", b=1, h=1))
    assert set(_programs.trace_seconds()) == {"causal", "window", "dilated", "blocks", "segments", "function"}
    assert _programs.compile_seconds(_contenders.jattn_attend, repeats=1) > 0
