"""`python -m bench gpu --time`: medians of calls on a GPU, everybody on the same cases, the most important first.

Several processes compile beside each other, which takes most of the time; one at a time has the GPU.
"""

from __future__ import annotations

import contextlib
import fcntl
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jattn_kernels.chips import GPUS, MIB

from bench._report import Column, header, number, write_json
from bench._report import line as table_line
from bench.gpu import _report
from bench.gpu._cases import Case
from bench.gpu._children import COMMAND, Pool, at_once, environment_of
from bench.gpu._runners import RUNNERS, copies, fills_memory, jattn_with

LIMIT = 75.0  # seconds of one case of one runner, its compilation included
STAGE_LIMIT = 345.0  # seconds of all cases and runners together
MOST_DEATHS = 2  # after so many a runner is left out: a hang costs all of LIMIT
SAMPLES = 9
WARM_SECONDS = 0.3  # of calls before the first sample: then the clock is what the card's power allows, for everybody
SAMPLE_SECONDS = 0.02  # the least that a sample takes, in which calls follow each other
MOST_CALLS = 200
_UNKNOWN_CACHE = 128 * MIB


@dataclass(frozen=True)
class Timing:
    """A runner's milliseconds a call, one number for each sample, or why there are none."""

    milliseconds: Sequence[float] = ()
    reason: str = ""
    calls: int = 0

    @property
    def median(self) -> float | None:
        return statistics.median(self.milliseconds) if self.milliseconds else None

    @property
    def spread(self) -> float | None:
        """The distance of the quartiles over the median."""
        if len(self.milliseconds) < 2 or not self.median:
            return None
        low, _, high = statistics.quantiles(self.milliseconds, n=4, method="inclusive")
        return (high - low) / self.median


@dataclass(frozen=True)
class TimedRow:
    """A case and everybody's times."""

    case: Case
    timings: Mapping[str, Timing]

    def teraflops(self, name: str) -> float | None:
        """Useful TFLOP/s."""
        median = self.timings[name].median if name in self.timings else None
        return None if median is None else 1e-9 * self.case.flops / median

    def as_json(self) -> dict[str, Any]:
        """Everything, with the name, the medians and the spreads."""
        timings = {
            name: {"median": one.median, "spread": one.spread, **asdict(one)} for name, one in self.timings.items()
        }
        return {"name": self.case.name, "case": asdict(self.case), "flops": self.case.flops, "timings": timings}


LEGEND = f"""\
ms: medians of {SAMPLES} samples, after {WARM_SECONDS} s of calls, which bring the clock to what the power allows;
  a sample is calls that follow each other for at least {SAMPLE_SECONDS * 1e3:.0f} ms, waited for at its end, so short
  calls are timed with what starts them. (+-): the quartiles' distance over the median, in percent. Arrays of each
  call have left the L2 cache when their turn comes. Nothing else runs on the GPU; processors compile the next cases.
[1, t, 16, d] bfloat16; causal but for plain; decode: one query, s keys, 32 heads of 8 key heads, lengths that are known
  when the call runs and hide nothing; fwdbwd: the gradients of q, k and v as well. TF/s: useful ones, 4 d flops
  for every head and attended pair, 3.5 times that with the gradients.
jattn: pallas_gpu. cudnn, xla: jax.nn's attention; what it has no argument for is an array of all pairs, made in the
  call (segments, ALiBi) or before it (bias). torch: FlexAttention, compiled, its block masks made before the clock.
-: the reasons are in the JSON."""


def columns(names: Sequence[str]) -> list[Column[TimedRow]]:
    """The table's columns for these runners."""

    def cell(row: TimedRow, name: str) -> str:
        one = row.timings.get(name, Timing())
        spread = "" if one.spread is None else f" (+-{100 * one.spread:2.0f})"
        return number(one.median) + spread

    return [
        Column("case", lambda row: row.case.name, 28, left=True),
        *(Column(f"{name} ms", lambda row, name=name: cell(row, name), 14) for name in names),
        Column("TF/s", lambda row: number(row.teraflops(names[0])), 5),
    ]


def run(
    cases: Sequence[Case],
    names: Sequence[str],
    facts: Mapping[str, Any],
    out: Path,
    *,
    command: Sequence[str] = COMMAND,
    stage_limit: float = STAGE_LIMIT,
    limit: float = LIMIT,
) -> int:
    """Time everything that the limits allow, a line for each case, and write time.json, time.txt and time.png."""
    begun = time.perf_counter()
    table = columns(names)
    text = [header(table)]
    print(text[0], flush=True)
    rows: list[TimedRow] = []
    deaths = dict.fromkeys(names, 0)
    left = lambda: stage_limit - (time.perf_counter() - begun)
    environment = environment_of(out)
    pool = lambda: Pool(at_once(), environment, command)
    # torch has processes of its own: neither it nor JAX sees what the other keeps of the GPU's memory.
    with pool() as own, pool() as torch, ThreadPoolExecutor(at_once()) as threads:

        def one(case: Case) -> TimedRow | None:
            if left() < 5:
                return None
            ask = lambda name: (torch if name == "torch" else own).ask
            timing = lambda name: _timing(ask(name), case, name, facts.get("chip"), deaths, left(), limit, out)
            return TimedRow(case, {name: timing(name) for name in names})

        for row in threads.map(one, cases):
            if row is not None:
                rows.append(row)
                text.append(table_line(table, row))
                print(text[-1], flush=True)
                write_json(out / "time.json", _document(facts, rows, False))
    timed = {row.case.name for row in rows}
    not_run = [case.name for case in cases if case.name not in timed]
    ending = ["", _summary(rows, names, not_run), "", LEGEND]
    print("\n".join(ending))
    write_json(out / "time.json", {**_document(facts, rows, True), "not_run": not_run})
    (out / "time.txt").write_text("\n".join([*text, *ending]) + "\n")
    _report.plot_times(rows, names, str(facts.get("device", "")), out / "time.png")
    print(f"\nWritten: {', '.join(str(out / f'time.{suffix}') for suffix in ('txt', 'json', 'png'))}")
    return 0


def _timing(
    ask: Callable[..., dict[str, Any]],
    case: Case,
    name: str,
    chip: str | None,
    deaths: dict[str, int],
    left: float,
    limit: float,
    out: Path,
) -> Timing:
    """A runner's times for a case; its deaths are counted."""
    if reason := RUNNERS[name].skips(case):
        return Timing(reason=reason)
    if deaths[name] >= MOST_DEATHS:
        return Timing(reason=f"left out after {MOST_DEATHS} processes that hung or died")
    if left < 5:
        return Timing(reason="not run: out of time")
    asked = request(case, name, chip, turn=turn(out))
    answer = ask(asked, min(limit, left), last=fills_memory(case) and name != "jattn")
    deaths[name] += bool(answer.get("died"))
    return Timing(answer.get("milliseconds", ()), answer.get("error", ""), answer.get("calls", 0))


def turn(out: Path) -> str:
    """The file that whoever has the GPU holds."""
    return str(out.resolve() / "turn")


def request(case: Case, name: str, chip: str | None, **more: Any) -> dict[str, Any]:
    """What a worker is asked."""
    cache = GPUS[chip].l2_cache if chip in GPUS else _UNKNOWN_CACHE
    return {"stage": "time", "case": asdict(case), "runner": name, "cache": cache, **more}


def _document(facts: Mapping[str, Any], rows: Sequence[TimedRow], complete: bool) -> dict[str, Any]:
    return {"machine": facts, "complete": complete, "rows": [row.as_json() for row in rows]}


def _summary(rows: Sequence[TimedRow], names: Sequence[str], not_run: Sequence[str]) -> str:
    """How often each runner was timed, everybody's time over the first's, and what there was no time for."""
    lines = []
    for name in names:
        times = [row.timings[name].median for row in rows if name in row.timings]
        lines.append(f"{name}: {sum(one is not None for one in times)} of {len(rows)} cases timed")
    for name in names[1:]:
        pairs = [(row.timings[names[0]].median, row.timings[name].median) for row in rows]
        ratios = [theirs / ours for ours, theirs in pairs if ours and theirs]
        if ratios:
            mean = statistics.geometric_mean(ratios)
            lines.append(f"{name} / {names[0]}: {mean:.2f} in the geometric mean of {len(ratios)} cases")
    if not_run:
        lines.append(f"no time was left for {len(not_run)} cases: {', '.join(not_run)}")
    return "\n".join(lines)


# In the child


def time_case(request: Mapping[str, Any]) -> dict[str, Any]:
    """Milliseconds a call in each sample; the request may say how many samples, and of how many seconds at least."""
    case = Case(**request["case"])
    runner = RUNNERS[request["runner"]]
    prepare = jattn_with(request["settings"]) if "settings" in request else runner.prepare
    prepared = prepare(case, copies(case, request["cache"]))
    given = {name: request[key] for name, key in _TAKEN.items() if key in request}
    with _turn(request.get("turn")):
        seconds, calls = samples(prepared.draw(), prepared.wait, prepared.copies, **given)
    return {"milliseconds": [1e3 * one for one in seconds], "calls": calls}


_TAKEN = {"count": "samples", "least": "sample_seconds", "warm": "warm_seconds"}
"""Arguments of `samples`, and what a request calls them."""


@contextlib.contextmanager
def _turn(file: str | None) -> Iterator[None]:
    """The GPU is this process's alone among those that name the same file."""
    if file is None:
        yield
        return
    with open(file, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def samples(
    call: Callable[[int], Any],
    wait: Callable[[Any], Any],
    copies: int,
    count: int = SAMPLES,
    least: float = SAMPLE_SECONDS,
    warm: float = WARM_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[list[float], int]:
    """Seconds a call in each of `count` samples of at `least` so many seconds, and how many calls each has.

    Calls go round the copies without a pause, from sample to sample; the last of a sample is waited for.
    """
    for n in range(min(3, copies)):
        wait(call(n))
    turn = 0

    def sample(calls: int) -> float:
        nonlocal turn
        start = clock()
        result = None
        for _ in range(calls):
            result = call(turn % copies)
            turn += 1
        wait(result)
        return (clock() - start) / calls

    once = sample(3)
    calls = max(3, min(MOST_CALLS, int(least / max(once, 1e-9)) + 1))
    begun = clock()
    while clock() - begun < warm:
        sample(calls)
    return [sample(calls) for _ in range(count)], calls
