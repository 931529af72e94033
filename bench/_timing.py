"""Interleaved timing: A B C A B C ..., so that a slow minute of the machine falls on every contender alike."""

import os
import time
from collections.abc import Callable, Mapping

PAUSE = 0.01  # seconds before each run, in which the threads of the run before stop spinning


def wait_passively() -> None:
    """Has OpenMP's threads sleep while they wait.  Call it before torch is imported.

    Left to itself torch's pool spins on after a call, and takes a core from whoever runs next.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def rounds_within(budget: float, seconds: float, floor: int, ceiling: int) -> int:
    """How many runs of about `seconds` each fit in `budget` seconds, at least `floor` and at most `ceiling`."""
    return max(floor, min(ceiling, int(budget / max(seconds, 1e-9))))


def interleave(
    runs: Mapping[str, Callable[[], object]],
    rounds: Mapping[str, int],
    *,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, list[float]]:
    """Time every run `rounds[name]` times, in turns.

    A contender with fewer rounds than the most sits out some of them, evenly spread from first to last.

    Args:
        runs: by name, a function that returns when its work is done.
        rounds: by name, how often to run it.
        clock: seconds.
        sleep: how to pause.

    Returns:
        By name, the seconds of each run, in order.
    """
    most = max(rounds.values(), default=0)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(most):
        for name, run in runs.items():
            if (turn + 1) * rounds[name] // most > turn * rounds[name] // most:
                sleep(PAUSE)
                start = clock()
                run()
                seconds[name].append(clock() - start)
    return seconds
