"""One case, measured: everyone warmed, checked against each other, then timed in turns."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bench import _timing
from bench.cpu._cases import Case, inputs, useful_flops
from bench.cpu._contenders import JATTN, Contender

TOLERANCE = 2e-5  # of the largest magnitude in the peer's array: ten times what torch and jax.nn differ by
MOST_ROUNDS = 50


@dataclass(frozen=True)
class Row:
    """What came of one case.

    `seconds`: by contender, every run's time. `skipped`: by contender, why it sat the case out. `differences`: by peer,
    the largest absolute difference between its arrays and jattn's. `wrong`: the peers that jattn disagrees with.
    """

    case: Case
    flops: float
    seconds: dict[str, list[float]]
    skipped: dict[str, str]
    differences: dict[str, float]
    wrong: list[str]

    def median(self, name: str) -> float | None:
        """Median seconds of a contender, None where it has no time."""
        return statistics.median(self.seconds[name]) if self.seconds.get(name) else None

    def quartiles(self, name: str) -> tuple[float, float] | None:
        """The first and third quartile of a contender's seconds, None where it has no time."""
        seconds = self.seconds.get(name)
        if not seconds:
            return None
        low, _, high = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
        return low, high

    def gflops(self, name: str) -> float | None:
        """Useful GFLOP/s of a contender."""
        median = self.median(name)
        return None if median is None else 1e-9 * self.flops / median

    def ratio(self, peer: str) -> float | None:
        """The peer's time over jattn's: above 1, jattn is faster."""
        theirs, ours = self.median(peer), self.median(JATTN.name)
        return None if theirs is None or ours is None else theirs / ours

    def as_json(self) -> dict[str, Any]:
        """Everything, with the name and the medians that a later run compares itself with."""
        medians = {name: self.median(name) for name in self.seconds}
        return {"name": self.case.name, "median_seconds": medians, **asdict(self)}


def measure(case: Case, contenders: Sequence[Contender], budget: float, rounds: int | None = None) -> Row:
    """Run a case.

    Args:
        case: which.
        contenders: jattn and its peers, in the order in which they take turns.
        budget: seconds of timed runs for each contender.
        rounds: how often each runs; None fits it into the budget.
    """
    data = inputs(case)
    skipped = {one.name: reason for one in contenders if (reason := one.skips(case))}
    active = [one for one in contenders if one.name not in skipped]
    runs = {one.name: one.prepare(case, data) for one in active}
    arrays, counts = {}, {}
    for one in active:
        result, elapsed = warm(runs[one.name])
        arrays[one.name] = one.arrays(result)
        counts[one.name] = rounds or _timing.rounds_within(budget, elapsed, one.floor, MOST_ROUNDS)
    peers = [name for name in arrays if name != JATTN.name]
    gaps = {peer: compare(arrays[JATTN.name], arrays[peer]) for peer in peers}
    return Row(
        case=case,
        flops=useful_flops(case, data.ids),
        seconds=_timing.interleave(runs, counts),
        skipped=skipped,
        differences={peer: largest for peer, (largest, _) in gaps.items()},
        wrong=[peer for peer, (_, agree) in gaps.items() if not agree],
    )


def warm(run: Callable[[], Any]) -> tuple[Any, float]:
    """Run for a quarter of a second, at least once: the last result and the seconds that it took."""
    beginning = time.perf_counter()
    while True:
        start = time.perf_counter()
        result = run()
        end = time.perf_counter()
        if end - beginning > 0.25:
            return result, end - start


def compare(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> tuple[float, bool]:
    """The largest absolute difference of two lists of arrays, and whether each pair agrees; NaN agrees with nothing."""
    gaps = [float(np.max(np.abs(a - b))) for a, b in zip(ours, theirs, strict=True)]
    limits = [TOLERANCE * float(np.max(np.abs(b))) for b in theirs]
    return float(np.max(gaps)), all(gap <= limit for gap, limit in zip(gaps, limits, strict=True))
