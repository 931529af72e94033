"""How near estimates come: each published time of tokamax's cache beside the estimate for the same call."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from bench.tpu._cases import Case, Setting
from bench.tpu._contenders import TOKAMAX
from bench.tpu._estimate import Reply, estimate
from bench.tpu._published import Published

_PASSES = {"fwd": "forward", "lse": "forward with lse", "bwd": "backward"}


class Comparison(NamedTuple):
    """An entry of the cache and the estimate for it in milliseconds, kernels and XLA's part; None without a count."""

    entry: Published
    milliseconds: float | None

    @property
    def ratio(self) -> float | None:
        """Estimate over published time: below 1, the estimate is too good."""
        return None if self.milliseconds is None else self.milliseconds / self.entry.milliseconds


def compare(entries: Iterable[Published], count: Callable[[Case, Setting], Reply | None]) -> list[Comparison]:
    """The estimate for each entry."""
    return [
        Comparison(
            entry,
            estimate(
                entry.case, replace(TOKAMAX, settings=lambda case, entry=entry: [entry.setting]), count
            ).end_to_end,
        )
        for entry in entries
    ]


def line(one: Comparison) -> str:
    """An entry's line: its case, the estimate, the published time and their ratio."""
    shown = "       -      -" if one.ratio is None else f"{one.milliseconds:8.3f} {one.ratio:6.3f}"
    case = one.entry.case
    return f"{case.name:32} {case.shape:16} {one.entry.milliseconds:8.3f} {shown}"


HEADER = f"{'case':32} {'b x h x t x d':16} {'timed ms':>8} {'estimate':>8} {'ratio':>6}"


def table(comparisons: Sequence[Comparison]) -> str:
    """Spread of estimate over published time by chip and pass: of each width, of each length, and of all."""
    groups: dict[tuple[str, str, str, int], list[float]] = defaultdict(list)
    for one in comparisons:
        if one.ratio is not None:
            case = one.entry.case
            for axis, size in (("d", case.d), ("t", case.t), ("all", 0)):
                groups[case.chip, case.direction, axis, size].append(one.ratio)
    order = (*_PASSES, "d", "t", "all")
    lines = [f"{'chip':6} {'pass':18} {'':8} {'times':>6} {'min':>6} {'median':>6} {'max':>6}"]
    for key in sorted(groups, key=lambda key: (key[0], order.index(key[1]), order.index(key[2]), key[3])):
        chip, direction, axis, size = key
        figures = "".join(f" {f(groups[key]):6.2f}" for f in (min, statistics.median, max))
        which = f"{axis} {size}" if size else axis
        lines.append(f"{chip:6} {_PASSES[direction]:18} {which:8} {len(groups[key]):6}{figures}")
    counted, of = sum(one.ratio is not None for one in comparisons), len(comparisons)
    missing = f"; {of - counted} not counted yet: python -m bench tpu --published" if counted < of else ""
    return "\n".join([f"Estimate over published time, {counted} of the {of} times in tokamax's cache{missing}", *lines])
