"""From counted cycles to milliseconds: the best settings, and what was counted before."""

import dataclasses

import pytest
from jattn_kernels.chips import TPUS

from bench.tpu._estimate import Kept, estimate
from tests.bench.tpu.estimates import CASE, contender, counts

V5E = TPUS["v5e"]


def test_estimate_takes_the_best_of_each_kernel():
    cycles = {0: (10, 90), 1: (20, 50), 2: (40, 41), 3: (30, 60)}

    def answer(case, setting):
        assert (case.b, case.h) == (1, 2)
        if setting["n"] == 3:
            return {"error": "RuntimeError: out of memory"}
        forward, backward = (1500 * value for value in cycles[setting["n"]])
        kernels = {"forward.1": counts(forward), "backward.1": counts(backward, startup=1500)}
        return {"kernels": kernels, "between_bytes": 819e6 * (1 + setting["n"])}

    got = estimate(CASE, contender(), answer)
    scale = 4 * 16 / 2
    assert got.milliseconds is not None
    assert got.milliseconds == pytest.approx((10 * scale + 1 + 40 * scale) * 1e-3)
    assert got.kernels is not None
    assert [got.kernels[name]["setting"]["n"] for name in ("forward.1", "backward.1")] == [0, 2]
    assert got.end_to_end == pytest.approx(got.milliseconds + scale)
    assert got.parts == {"fwdbwd": (4, 0, 4)}
    assert got.errors == ['{"n": 3}: RuntimeError: out of memory']
    assert got.utilisation(CASE) == pytest.approx(CASE.flops / (1e-3 * got.milliseconds * V5E.peak()))


def test_what_is_hopeless_by_what_is_known_is_not_counted():
    known = {0: 30, 1: 20}
    hopeless = lambda part, setting, settings, known: known(part, {"n": 0}) is not None and setting["n"] == 3
    answer = lambda n, time: {"kernels": {"forward.1": counts(1500 * time)}, "between_bytes": 0}
    got = estimate(
        CASE,
        contender(hopeless=hopeless),
        lambda case, setting: pytest.fail("asked") if setting["n"] != 2 else None,
        lambda case, setting: answer(setting["n"], known[setting["n"]]) if setting["n"] in known else None,
    )
    assert got.milliseconds == pytest.approx(0.02 * 32)
    assert got.parts == {"fwdbwd": (2, 1, 4)}


def test_the_last_part_is_the_whole_call():
    """Its program has the other part's kernel too, and what XLA does around both."""

    def answer(part, setting):
        kernels = {"forward.1": counts(1500 * (10 + setting["n"] if part.direction == "lse" else 5))}
        backward = {"backward.1": counts(1500 * 100)} if part.direction == "bwd" else {}
        return {"kernels": {**kernels, **backward}, "between_bytes": 819e6 if backward else 0}

    parts = lambda case: [dataclasses.replace(case, direction=one) for one in ("lse", "bwd")]
    got = estimate(CASE, contender(parts=parts), answer)
    assert got.milliseconds == pytest.approx((5 + 100) * 1e-3 * 32)
    assert got.end_to_end == pytest.approx((5 + 100) * 1e-3 * 32 + 32)
    assert got.parts == {"lse": (4, 0, 4), "bwd": (4, 0, 4)}
    alone = estimate(
        CASE, contender(parts=parts), lambda part, setting: answer(part, setting) if part.direction == "lse" else None
    )
    assert alone.milliseconds is None


def test_nothing_compiled():
    got = estimate(CASE, contender(), lambda case, setting: {"error": "no"})
    assert (got.milliseconds, got.utilisation(CASE), len(got.errors)) == (None, None, 4)


def test_kept_answers_are_not_counted_again(tmp_path):
    asked = []

    def answer(case, name, setting):
        asked.append(setting["n"])
        return {"kernels": {}, "between_bytes": setting["n"]}

    path = tmp_path / "kept.json"
    for _ in range(2):
        kept = Kept(path, lambda package: f"{package}==1")
        for n in (1, 2):
            assert kept.count(answer, CASE, contender(cached=True), {"n": n}) == {"kernels": {}, "between_bytes": n}
    assert asked == [1, 2]
    kept.count(answer, CASE, contender(cached=False), {"n": 1})
    kept.count(answer, dataclasses.replace(CASE, h=8), contender(cached=True), {"n": 1})
    assert asked == [1, 2, 1, 1]
    died = {"error": "the compiler died", "died": True}
    assert kept.count(lambda *_: died, CASE, contender(cached=True), {"n": 3}) == died
    assert kept.count(answer, CASE, contender(cached=True), {"n": 3}, fresh=False) is None
    assert kept.count(answer, CASE, contender(cached=True), {"n": 3}) == {"kernels": {}, "between_bytes": 3}
    assert list(tmp_path.iterdir()) == [path]
