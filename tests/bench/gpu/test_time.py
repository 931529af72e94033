"""`python -m bench gpu --time`: samples, rows, and the order in which time runs out."""

import json

from bench.gpu import _time
from bench.gpu._cases import Case
from bench.gpu._runners import RUNNERS, copies
from tests.bench.gpu.fakes import COMMAND


def test_samples_go_round_the_copies():
    seen, now = [], [0.0]

    def call(n):
        seen.append(n)
        now[0] += 0.004
        return n

    got, calls = _time.samples(call, lambda x: None, 3, clock=lambda: now[0])
    assert calls == 6  # of four milliseconds, for at least twenty
    assert len(got) == _time.SAMPLES
    assert all(abs(one - 0.004) < 1e-9 for one in got)
    assert seen[3:] == [n % 3 for n in range(len(seen) - 3)]


def test_copies_are_larger_than_the_cache():
    case = Case("causal", 1, 1024, 16, 128, "fwd")
    one = 3 * 2 * 1024 * 16 * 128
    assert (copies(case, 50 * 2**20) - 1) * one >= 2 * 50 * 2**20
    assert copies(Case("causal", 1, 2**20, 16, 128, "fwd"), 50 * 2**20) == 2
    keys = 2 * 2 * 8 * 8192 * 8 * 128
    assert (copies(Case("decode", 8, 1, 32, 128, "fwd", s=8192, g=8), 50 * 2**20) - 1) * keys >= 50 * 2**20


def test_everybody_is_asked_and_deaths_are_counted(tmp_path, capsys):
    cases = [Case("causal", 1, t, 16, 128, "fwd") for t in (1024, 2048, 4096)]
    assert (
        _time.run(cases, ["jattn", "cudnn", "torch"], {"device": "H100", "chip": "h100"}, tmp_path, command=COMMAND)
        == 0
    )
    document = json.loads((tmp_path / "time.json").read_text())
    assert document["complete"]
    assert [row["timings"]["jattn"]["median"] for row in document["rows"]] == [2.0] * 3
    assert [row["timings"]["torch"]["spread"] for row in document["rows"]] == [0.0] * 3
    reasons = [row["timings"]["cudnn"]["reason"] for row in document["rows"]]
    assert "died with signal SIGABRT" in reasons[0]
    assert reasons[2] == "left out after 2 processes that hung or died"
    printed = capsys.readouterr().out
    assert "torch / jattn: 2.00 in the geometric mean of 3 cases" in printed
    assert {"time.json", "time.txt", "time.png"} <= {path.name for path in tmp_path.iterdir()}


def test_what_there_was_no_time_for_is_named(tmp_path, capsys):
    case = Case("causal", 1, 1024, 16, 128, "fwd")
    assert _time.run([case], ["jattn"], {}, tmp_path, command=COMMAND, stage_limit=0) == 0
    assert "no time was left for 1 cases: causal-t1024-d128-fwd" in capsys.readouterr().out
    assert json.loads((tmp_path / "time.json").read_text())["not_run"] == [case.name]


def test_who_sits_out_says_why():
    case = Case("dropout", 1, 32768, 16, 128, "fwdbwd")
    assert RUNNERS["torch"].skips(case) == "FlexAttention has no dropout"
    assert RUNNERS["xla"].skips(case) == "jax.nn has no dropout"
    assert "GiB" in RUNNERS["xla"].skips(Case("causal", 1, 32768, 16, 128, "fwd"))
    assert "GiB" in RUNNERS["cudnn"].skips(Case("alibi", 2, 32768, 16, 128, "fwd"))
    assert not RUNNERS["cudnn"].skips(Case("causal", 1, 32768, 16, 128, "fwd"))
    assert not RUNNERS["jattn"].skips(case)


def test_a_backend_that_runs_here_is_timed():
    """The child's part, on the CPU: forward, forward with gradients, and few queries with fewer key heads."""
    few = {"ask": "decode", "t": 1, "s": 24, "g": 1, "direction": "fwd"}
    for asked in ({"direction": "fwd"}, {"direction": "fwdbwd"}, few):
        case = {"ask": "alibi", "b": 1, "t": 16, "h": 2, "d": 8, **asked}
        got = _time.time_case(
            {"case": case, "runner": "blockwise", "cache": 100, "samples": 2, "sample_seconds": 1e-6, "warm_seconds": 0}
        )
        assert len(got["milliseconds"]) == 2
        assert min(got["milliseconds"]) > 0
