"""What programs cost before they run."""

from bench.cpu import _programs, _report
from bench.cpu._cases import Case


def test_programs_are_held_against_their_limits():
    text = " ".join(_report.summary(_programs.held({"causal": 0.1, "function": 1.5}, [1.3, 1.4, 1.7])).split())
    assert "longest trace of a mask, t = 32768: function 1.50s target <= 1.00s: MISSED" in text
    assert "compile time, causal-t2048-d64-fwdbwd, quartiles 1.35 1.55 1.40x target <= 1.50x: met" in text


def test_programs_are_timed():
    assert set(_programs.trace_seconds(256)) == {"causal", "window", "dilated", "blocks", "segments", "function"}
    case = Case("causal", 64, 8, "fwd", b=1, h=1)
    ratios = _programs.compile_ratios(case, rounds=2)
    assert len(ratios) == 2 and min(ratios) > 0
