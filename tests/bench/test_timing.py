"""Interleaved timing: in which order things run, and what is timed. No time is asserted."""

import itertools

import pytest

from bench import _timing


def test_runs_take_turns_and_slow_ones_sit_out_evenly():
    order = []
    now = itertools.count()
    runs = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = _timing.interleave(runs, {"a": 4, "b": 4, "c": 2}, clock=lambda: next(now), sleep=lambda _: None)
    assert "".join(order) == "ababcababc"
    assert seconds == {"a": [1] * 4, "b": [1] * 4, "c": [1] * 2}


def test_every_run_is_timed_alone():
    now = [0.0]
    costs = {"a": iter([3.0, 1.0, 2.0]), "b": iter([10.0, 30.0, 20.0])}

    def pass_time(seconds):
        now[0] += seconds

    runs = {name: lambda name=name: pass_time(next(costs[name])) for name in costs}
    seconds = _timing.interleave(runs, {"a": 3, "b": 3}, clock=lambda: now[0], sleep=lambda _: pass_time(100.0))
    assert seconds == {"a": [3.0, 1.0, 2.0], "b": [10.0, 30.0, 20.0]}


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, 50), (0.01, 50), (0.1, 10), (0.9, 5)])
def test_rounds_fit_the_budget(seconds, rounds):
    assert _timing.rounds_within(1.0, seconds, floor=5, ceiling=50) == rounds


def test_threads_sleep_while_they_wait(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    _timing.wait_passively()
    assert _timing.os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
