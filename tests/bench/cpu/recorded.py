"""Results as a run records them, and small cases."""

from bench import _passes
from bench.cpu import _cases, _measure
from bench.cpu._cases import Case

SMALL = [Case(mask, 600, 8, direction, b=2, h=1) for mask in _cases.MASKS for direction in _passes.DIRECTIONS]


def row(case: Case, jattn: float, torch: float, jax: float | None = None) -> _measure.Row:
    """A recorded result: three runs of each around a median."""
    medians = {"jattn": jattn, "torch": torch, **({} if jax is None else {"jax": jax})}
    seconds = {name: [1.5 * median, median, 0.9 * median] for name, median in medians.items()}
    skipped = {"jax": "its scores would take 4.0 GiB"} if jax is None else {}
    return _measure.Row(case, 1e9, seconds, skipped, {"torch": 1.5e-6}, [])


def recorded() -> list[_measure.Row]:
    """Every case: torch takes as long as jattn forward and twice as long otherwise, jax.nn eight times as long."""
    return [row(case, 0.1, 0.2 if case.backward else 0.1, None if case.t > 8192 else 0.8) for case in _cases.cases()]
