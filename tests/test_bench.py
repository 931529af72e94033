"""The benchmark's bookkeeping: what it counts, in which order it runs, what it writes. No time is asserted."""

import dataclasses
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench import __main__ as bench
from bench import _cases, _contenders, _measure, _memory, _programs, _report, _timing, cpu
from bench._cases import Case

SMALL = [Case(mask, 600, 8, direction, b=2, h=1) for mask in _cases.MASKS for direction in _cases.DIRECTIONS]
by_name = pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)


def row(case: Case, jattn: float, torch: float, jax: float | None = None) -> _measure.Row:
    """A recorded result: three runs of each around a median."""
    medians = {"jattn": jattn, "torch": torch, **({} if jax is None else {"jax": jax})}
    seconds = {name: [1.5 * median, median, 0.9 * median] for name, median in medians.items()}
    skipped = {"jax": "its scores would take 4.0 GiB"} if jax is None else {}
    return _measure.Row(case, 1e9, seconds, skipped, {"torch": 1.5e-6}, [])


def recorded() -> list[_measure.Row]:
    """Every case: torch takes as long as jattn forward and twice as long otherwise, jax.nn eight times as long."""
    return [row(case, 0.1, 0.2 if case.backward else 0.1, None if case.t > 8192 else 0.8) for case in _cases.cases()]


# What is timed


def test_cases_cover_what_is_promised():
    found = _cases.cases()
    promised = itertools.product(_cases.MASKS, _cases.LENGTHS, _cases.WIDTHS, _cases.DIRECTIONS)
    assert sorted((case.mask, case.t, case.d, case.direction) for case in found) == sorted(promised)
    assert _cases.LENGTHS == (256, 512, 1024, 2048, 4096, 8192, 16384)
    assert (_cases.WIDTHS, _cases.WINDOW) == ((64, 128), 512)
    assert set(_cases.MASKS) == {"causal", "full", "window", "segments"}
    assert {case.b * case.t * case.h for case in found} == {16384}
    assert len({case.name for case in found}) == len(found)
    assert set(_cases.QUICK) < {case.name for case in found}


def test_named_cases_are_the_shapes_that_are_promised():
    found = {case.group: case for case in _cases.named_cases(("fwd",))}
    shape = lambda case: (case.t, case.keys, case.b, case.h, case.key_heads)
    assert shape(found["decode"]) == (1, 8192, 8, 32, 8)
    assert shape(found["small"]) == (64, 64, 64, 8, 8)
    assert shape(found["pooling"]) == (1, 40, 512, 8, 8)
    assert shape(found["cross"]) == (16, 4096, 4, 8, 8)
    assert (found["window-32k"].t, found["window-32k"].window) == (32768, 128)
    assert (found["additive"].t, found["additive"].score) == (1024, "additive")
    assert {x.normalizer for x in found.values()} == set(_cases.NORMALIZERS)
    assert set(_cases.SMALL) < set(found)
    names = [case.name for case in [*_cases.cases(), *_cases.named_cases()]]
    assert len(set(names)) == len(names)


NAMED = [
    Case("full", 3, 8, "fwdbwd", b=2, h=4, group="decode", s=40, g=2),
    Case("window", 512, 8, "fwdbwd", b=1, h=1, group="window-32k", window=100),
    Case("full", 20, 8, "fwdbwd", b=1, h=1, group="additive", score="additive"),
]


@pytest.mark.parametrize("case", NAMED, ids=lambda case: case.group)
def test_peers_of_named_cases_agree(case):
    data = _cases.inputs(case)
    contenders = [x for x in (_contenders.JATTN, *_contenders.PEERS.values()) if not x.skips(case)]
    if len(contenders) > 2:
        pytest.importorskip("torch")
    ours, *theirs = (x.arrays(x.prepare(case, data)()) for x in contenders)
    assert theirs
    assert all(_measure.compare(ours, x)[1] for x in theirs)
    pairs = np.broadcast_to(_cases.dense_mask(case, data.ids), (case.b, 1, case.t, case.keys)).sum()
    assert _cases.attended_pairs(case, data.ids) == pairs


def test_peers_sit_out_what_they_have_not():
    skips = {
        (case.group, name) for case in _cases.named_cases() for name, x in _contenders.PEERS.items() if x.skips(case)
    }
    sparse = {(group, peer) for group in ("sparsemax", "entmax15") for peer in ("torch", "jax")}
    assert skips == {*sparse, ("additive", "torch"), ("window-32k", "jax")}


@by_name
def test_flops_agree_with_brute_force(case):
    ids = _cases.inputs(case).ids
    mask = np.broadcast_to(_cases.dense_mask(case, ids), (case.b, case.h, case.t, case.t))
    factor = 3.5 if case.backward else 1.0
    assert _cases.useful_flops(case, ids) == 4 * case.d * int(mask.sum()) * factor
    assert _cases.attended_pairs(case, ids) * case.h == mask.sum()


def test_window_counts_short_sequences():
    case = Case("window", 100, 8, "fwd", b=1, h=1)
    assert _cases.attended_pairs(case, np.zeros((1, 100), np.int32)) == 100 * 101 // 2


def test_documents_are_packed_in_order():
    ids = _cases.documents(3, 4096, np.random.default_rng(0))
    assert ids.shape == (3, 4096)
    assert set(np.unique(np.diff(ids, axis=1))) == {0, 1}
    assert ids.min(axis=1).tolist() == [0, 0, 0]
    assert ids.max(axis=1).tolist() == [7, 7, 7]


def test_inputs_repeat():
    case = Case("segments", 64, 8, "fwd", b=2, h=1)
    for once, again in zip(_cases.inputs(case), _cases.inputs(case), strict=True):
        np.testing.assert_array_equal(once, again)


@pytest.mark.parametrize("peer", _contenders.PEERS)
@by_name
def test_peers_compute_the_case(case, peer):
    if peer == "torch":
        pytest.importorskip("torch")
    data = _cases.inputs(case)
    mask = jnp.asarray(_cases.dense_mask(case, data.ids))

    def plain(q, k, v, ids):
        scores = jnp.einsum("bthd,bshd->bhts", q, k) / math.sqrt(case.d)
        return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1), v)

    expected = jax.jit(_contenders.jax_program(case, plain))(*data)
    contender = _contenders.PEERS[peer]
    found = contender.arrays(contender.prepare(case, data)())
    assert len(found) == (4 if case.backward else 1)
    largest, agree = _measure.compare(found, [np.asarray(x) for x in expected])
    assert agree, largest


def test_jax_sits_out_what_needs_too_much_memory():
    skipped = {case.name for case in _cases.cases() if _contenders.PEERS["jax"].skips(case)}
    assert skipped == {f"{mask}-t16384-d{d}-fwdbwd" for mask in _cases.MASKS for d in _cases.WIDTHS}


# How it is timed


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


def constant(name: str, value: float, reason: str = "") -> _contenders.Contender:
    """A contender whose result is one number."""
    arrays = [np.full((1, 2, 1, 1), value)]
    return _contenders.Contender(name, lambda case, inputs: lambda: arrays, lambda result: result, lambda case: reason)


def test_measure_checks_times_and_skips():
    contenders = [constant("jattn", 1.0), constant("torch", 1.1), constant("jax", 1.0, "too large")]
    found = _measure.measure(Case("causal", 16, 4, "fwd", b=1, h=1), contenders, budget=0.0, rounds=3)
    assert found.wrong == ["torch"]
    assert found.differences == pytest.approx({"torch": 0.1})
    assert found.skipped == {"jax": "too large"}
    assert {name: len(times) for name, times in found.seconds.items()} == {"jattn": 3, "torch": 3}


def test_nan_agrees_with_nothing():
    nan, one = [np.array([np.nan])], [np.array([1.0])]
    assert not _measure.compare(nan, one)[1]
    assert not _measure.compare(one, nan)[1]
    assert _measure.compare(one, one) == (0.0, True)


def test_threads_sleep_while_they_wait(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    _timing.wait_passively()
    assert _timing.os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


# What is written


def test_row_medians_ratios_and_speeds():
    found = row(_cases.cases()[0], 0.5, 0.25)
    assert (found.median("jattn"), found.median("jax")) == (0.5, None)
    assert (found.ratio("torch"), found.ratio("jax")) == (0.5, None)
    assert found.gflops("torch") == 4.0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0"),
        (0.12345, "0.123"),
        (1.2345, "1.23"),
        (123.45, "123"),
        (54321.0, "54321"),
        (1e-6, "1.0e-06"),
    ],
)
def test_number(value, text):
    assert _report.number(value) == text


def test_table_is_aligned_and_says_what_was_skipped():
    case = Case("segments", 16384, 128, "fwdbwd", b=1, h=1)
    columns = _report.columns(["jattn", "torch", "jax"], baseline={case.name: 0.2})
    head, slow = _report.header(columns), _report.line(columns, row(case, 0.1, 12.5))
    wrong = _report.line(columns, dataclasses.replace(row(case, 0.1, 12.5, 1.0), wrong=["torch"]))
    assert len(head) == len(slow)
    for title, cell in [("jattn ms", "100"), ("torch ms", "12500"), ("torch/jattn", "125x"), ("was/now", "2.00x")]:
        end = head.index(title) + len(title)
        assert slow[:end].endswith(f" {cell}")
    assert slow[: head.index("jax ms") + len("jax ms")].endswith(" -")
    assert slow.split()[-3:] == ["3/3/-", "1.5e-06", "2.00x"]
    assert "WRONG: torch" in wrong


def test_aligned():
    assert _report.aligned([("name", "x"), ("a", "10")]) == "name   x\na     10"


def test_findings_stand_next_to_their_targets():
    rows = [*recorded(), row(Case("full", 32768, 64, "fwd", b=1, h=1), 0.1, 0.05)]
    found = {one.label: one for one in _report.findings(rows)}
    assert found["torch / jattn, geometric mean, forward (57 cases)"].value == pytest.approx(0.5 ** (1 / 57))
    assert found["torch / jattn, geometric mean, forward+backward (56 cases)"].value == pytest.approx(2.0)
    assert found["torch / jattn, geometric mean, causal (28 cases)"].value == pytest.approx(math.sqrt(2.0))
    assert found["torch / jattn, worst case: full-t32768-d64-fwd"][1:] == (0.5, 0.8)
    assert found["jax.nn / jattn, geometric mean, t >= 2048 (48 cases)"][1:] == (pytest.approx(8.0), 5.0)
    text = " ".join(_report.summary(list(found.values())).split())
    assert "0.500x target >= 0.800x: MISSED" in text
    assert "8.00x target >= 5.00x: met" in text


def test_named_cases_stand_next_to_their_targets():
    named = [row(case, 0.1, 0.09, 0.08) for case in _cases.named_cases()]
    found = _report.findings(named)
    text = " ".join(_report.summary(found).split())
    assert "torch / jattn, decode-fwd 0.900x" in text
    assert "torch / jattn, geometric mean, small ones (8 cases) 0.900x target >= 0.800x: met" in text
    assert "jax.nn / jattn, worst case: additive-fwd 0.800x target >= 1.00x: MISSED" in text
    slow = [dataclasses.replace(x, seconds={"jattn": [0.5]}) if x.case.group == "entmax15" else x for x in named]
    text = " ".join(_report.summary(_report.sparse_limits(slow)).split())
    assert "sparsemax / softmax, forward 1.00x target <= 4.00x: met" in text
    assert "entmax15 / softmax, forward + backward 5.00x target <= 4.00x: MISSED" in text


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


def test_quartiles():
    found = dataclasses.replace(
        row(_cases.cases()[0], 0.1, 0.1), seconds={"jattn": [0.1, 0.2, 0.3, 0.4, 0.5], "torch": [1.0]}
    )
    assert found.quartiles("jattn") == pytest.approx((0.2, 0.4))
    assert found.quartiles("torch") == (1.0, 1.0)
    assert found.quartiles("jax") is None


def test_findings_of_nothing():
    assert _report.summary(_report.findings([])) == ""


def test_json_and_plot_of_recorded_results(tmp_path):
    rows = recorded()
    path = tmp_path / "cpu.json"
    _report.write_json(path, {"rows": [one.as_json() for one in rows]})
    document = json.loads(path.read_text())
    assert [one["name"] for one in document["rows"]] == [one.case.name for one in rows]
    assert document["rows"][0]["seconds"] == rows[0].seconds
    assert cpu.jattn_seconds(document) == {one.case.name: 0.1 for one in rows}
    assert list(tmp_path.iterdir()) == [path]
    _report.plot(rows, ["jattn", "torch", "jax"], "recorded", tmp_path / "cpu.png")
    _report.plot(rows[:1], ["jattn", "torch"], "one point", tmp_path / "one.png")
    assert (tmp_path / "cpu.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "one.png").stat().st_size > 1000


# The command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cqu"], "bench: unknown subcommand 'cqu' (there is: cpu, tpu, tune, zoo; each has --help)"),
        (["cpu", "--filter", "nothing"], "bench cpu: no case matches; names look like causal-t1024-d64-fwdbwd"),
        (["cpu", "--t", "0"], "bench cpu: argument --t: '0' is not a positive integer"),
        (
            ["cpu", "--mask", "casual"],
            "bench cpu: argument --mask: 'casual' is not a comma-separated choice of causal,",
        ),
        (["cpu", "--nonsense"], "bench cpu: unrecognized arguments: --nonsense"),
        (["cpu", "--baseline", "no/such.json"], "bench cpu: FileNotFoundError:"),
    ],
)
def test_errors_are_one_line(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(cpu, "missing", lambda modules: [])
    try:
        status = bench.main(arguments)
    except SystemExit as stop:
        status = stop.code
    printed = capsys.readouterr()
    assert (status, printed.out, printed.err.count("\n")) == (2, "", 1)
    assert printed.err.startswith(message)


def test_missing_torch_is_a_hint(capsys, monkeypatch):
    monkeypatch.setattr(cpu, "missing", lambda modules: [name for name in modules if name == "torch"])
    assert bench.main(["cpu"]) == 2
    expected = "bench cpu: torch not installed: pip install 'jattn[bench]', or choose --peers jax\n"
    assert capsys.readouterr().err == expected


@pytest.fixture
def stand_in(monkeypatch):
    """jax.nn under jattn's name, and no large matrix product: the command line without the core."""
    monkeypatch.setattr(cpu, "JATTN", dataclasses.replace(_contenders.PEERS["jax"], name="jattn"))
    monkeypatch.setattr(cpu._machine, "matmul_gflops", lambda size, with_torch: {"jax": 1.0})
    monkeypatch.setattr(_memory, "ATTENDS", dict.fromkeys(["jattn", "jax"], _contenders.jax_attend))


ARGUMENTS = ["cpu", "--peers", "jax", "--t", "64", "--d", "8", "--mask", "causal", "--pass", "fwd", "--rounds", "1"]


def test_cpu_end_to_end(tmp_path, capsys, stand_in):
    assert bench.main([*ARGUMENTS, "--out", str(tmp_path)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "causal fwd 64 8 32 8" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cpu.json", "cpu.png", "cpu.txt"]
    document = json.loads((tmp_path / "cpu.json").read_text())
    assert document["complete"]
    assert [one["name"] for one in document["rows"]] == ["causal-t64-d8-fwd"]
    assert bench.main([*ARGUMENTS, "--out", str(tmp_path), "--baseline", str(tmp_path / "cpu.json")]) == 0
    assert "was/now" in capsys.readouterr().out


def test_a_wrong_result_fails_the_run(tmp_path, capsys, monkeypatch, stand_in):
    wrong = dataclasses.replace(cpu.JATTN, arrays=lambda result: [np.asarray(x) + 1 for x in result])
    monkeypatch.setattr(cpu, "JATTN", wrong)
    assert bench.main([*ARGUMENTS, "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert printed.out.count("WRONG: jax") == 1
    assert "WRONG RESULTS: jattn disagrees with a peer in causal-t64-d8-fwd (jax)" in printed.err


def test_memory_table(tmp_path, capsys, stand_in):
    assert bench.main(["cpu", "--memory", "--t", "256,512", "--out", str(tmp_path)]) == 0
    assert "causal-t512-d64-fwdbwd" in capsys.readouterr().out
    rows = json.loads((tmp_path / "cpu_memory.json").read_text())["rows"]
    assert [one["name"] for one in rows] == [f"causal-t{t}-d64-{way}" for way in ("fwd", "fwdbwd") for t in (256, 512)]
    assert all(one["temp_bytes"]["jax"] >= 4 * 8 * 256**2 for one in rows)
    default = [(case.b, case.t, case.h, case.d) for case in _memory.memory_cases(None, None, None, ("fwd",))]
    assert default == [(1, t, 8, 64) for t in (2048, 4096, 8192, 16384)]
