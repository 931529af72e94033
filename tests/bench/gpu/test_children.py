"""Work in processes of their own."""

import time

import pytest

from bench.gpu._children import Worker
from tests.bench.gpu.fakes import COMMAND


def test_one_process_answers_many_requests():
    with Worker(command=COMMAND) as worker:
        first, second = (worker.ask({"stage": "echo", "n": n}, 30) for n in range(2))
    assert [first["echo"]["n"], second["echo"]["n"]] == [0, 1]
    assert first["process"] == second["process"]


@pytest.mark.parametrize(
    ("stage", "error"),
    [
        ("hang", "no answer in 1 s"),
        ("crash", "died with signal SIGSEGV: no message"),
        ("exit", "died with status 3: the last line"),
        ("raise", "RuntimeError: INTERNAL"),
    ],
)
def test_what_fails_costs_one_request(stage, error):
    with Worker(command=COMMAND) as worker:
        before = worker.ask({"stage": "echo"}, 30)
        start = time.perf_counter()
        assert worker.ask({"stage": stage}, 1 if stage == "hang" else 30)["error"] == error
        assert time.perf_counter() - start < 20
        after = worker.ask({"stage": "echo"}, 30)
    assert after["process"] != before["process"]


def test_the_environment_is_added():
    with Worker(
        {"JATTN_BENCH_TEST": "1"}, ("/bin/sh", "-c", 'read x; echo "{\\"found\\": $JATTN_BENCH_TEST}"')
    ) as worker:
        assert worker.ask({}, 30)["found"] == 1


@pytest.mark.parametrize(
    ("stage", "died", "poisoned"), [("raise", False, True), ("crash", True, None), ("nothing", False, None)]
)
def test_the_real_worker(stage, died, poisoned):
    with Worker() as worker:
        answer = worker.ask({"stage": stage}, 60)
    assert (answer.get("died", False), answer.get("poisoned")) == (died, poisoned)
