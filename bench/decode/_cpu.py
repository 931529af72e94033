"""Steps on this machine's CPU, measured in turns: float32, jattn beside `jax.nn` and plain jnp."""

import statistics
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from bench import _timing
from bench.decode._cases import Case
from bench.decode._programs import jattn_step, jax_step, plain_step, shapes
from bench.decode._rows import Row

CONTENDERS = {"jattn": lambda case: jattn_step(case, "blockwise"), "jax.nn": jax_step, "jnp": plain_step}
TOLERANCE = 2e-5  # as a share of the largest number, by which results may differ
_MOST_ROUNDS, _FEWEST = 50, 5


def bandwidth(size: int = 2**28) -> float:
    """Bytes a second at which this machine sums up an array that no cache holds: what a step cannot be faster than."""
    array = jnp.ones(size // 4, jnp.float32)
    add = jax.jit(jnp.sum)
    add(array).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        add(array).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return size / min(seconds)


def arrays(case: Case) -> list[jax.Array]:
    """Random numbers of the shapes of a case."""
    rng = np.random.default_rng(0)
    made = []
    for x in shapes(case, jnp.float32):
        integers = x.dtype == jnp.int8
        drawn = rng.integers(-127, 128, x.shape, np.int8) if integers else rng.standard_normal(x.shape, np.float32)
        made.append(jnp.asarray(drawn if integers or x.ndim > 3 else 0.01 + 0.001 * np.abs(drawn)))
    return made


def measure(case: Case, speed: float, budget: float, rounds: int | None = None) -> Iterator[Row]:
    """A row for each contender.

    Args:
        case: which.
        speed: bytes a second, from `bandwidth`.
        budget: seconds of timed runs for each contender.
        rounds: how often each runs; None fits it into the budget.
    """
    given = arrays(case)
    runs: dict[str, Callable[[], jax.Array]] = {}
    counts, errors, wanted = {}, {}, None
    for name, make in CONTENDERS.items():
        step = jax.jit(make(case))
        runs[name] = lambda step=step: step(*given).block_until_ready()
        out = np.asarray(runs[name]())
        start = time.perf_counter()
        runs[name]()
        counts[name] = rounds or _timing.rounds_within(budget, time.perf_counter() - start, _FEWEST, _MOST_ROUNDS)
        wanted = out if wanted is None else wanted
        if not np.max(np.abs(out - wanted)) <= TOLERANCE * np.max(np.abs(wanted)):
            errors[name] = "WRONG: differs from jattn's"
    seconds = _timing.interleave(runs, counts)
    limit = 1e3 * case.bytes(4) / speed
    for name in CONTENDERS:
        yield Row(case, "cpu", name, 1e3 * statistics.median(seconds[name]), limit, error=errors.get(name, ""))
