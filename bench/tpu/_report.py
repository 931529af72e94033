"""The table of `python -m bench tpu` and its summary, each figure next to its target; and the README's tables."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from bench._report import Column, number
from bench.tpu._cases import Case
from bench.tpu._estimate import Estimate
from bench.tpu._published import Published


@dataclass(frozen=True)
class Row:
    """What came of one case: an estimate for each contender, jattn's first."""

    case: Case
    estimates: Mapping[str, Estimate]

    def ratio(self, peer: str, time: str = "milliseconds") -> float | None:
        """jattn's time over the peer's, of the kernels or `end_to_end`: below 1, jattn is faster."""
        ours, theirs = (getattr(self.estimates[name], time) for name in ("jattn", peer))
        return None if ours is None or theirs is None else ours / theirs

    @property
    def utilisation(self) -> float | None:
        return self.estimates["jattn"].utilisation(self.case)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.case.name,
            **asdict(self.case),
            "estimates": {
                name: {**asdict(one), "utilisation": one.utilisation(self.case)} for name, one in self.estimates.items()
            },
        }


class Goal(NamedTuple):
    """A kind of target: what it is called, what was reached, what is asked for, and whether less is better."""

    label: str
    reached: Callable[[Row], float | None]
    target: Callable[[Row], float | None]
    most: bool

    def verdict(self, row: Row) -> str:
        """`met` or `MISSED`, or nothing where there is no target or nothing was reached."""
        reached, target = self.reached(row), self.target(row)
        if reached is None or target is None:
            return ""
        return "met" if (reached <= target if self.most else reached >= target) else "MISSED"


RATIO = Goal("jattn / splash", lambda row: _ratio(row), lambda row: row.case.target, most=True)
UTILISATION = Goal("utilisation", lambda row: row.utilisation, lambda row: row.case.utilisation_target, most=False)


def _ratio(row: Row) -> float | None:
    return row.ratio("splash") if "splash" in row.estimates else None


def columns(names: Sequence[str]) -> list[Column[Row]]:
    """The table's columns for these contenders."""
    lines = [
        Column("chip", lambda row: row.case.chip, 5, left=True),
        Column("mask", lambda row: row.case.mask, 6, left=True),
        Column("pass", lambda row: row.case.direction, 6, left=True),
        Column("b x h x t x d", lambda row: row.case.shape, 14, left=True),
    ]
    for name in names:
        lines += [
            Column(f"{name} ms", lambda row, name=name: number(row.estimates[name].milliseconds), 9),
            Column("util", lambda row, name=name: _percent(row.estimates[name].utilisation(row.case)), 5),
            Column("+ XLA", lambda row, name=name: number(row.estimates[name].end_to_end), 6),
        ]
    if "splash" in names:
        lines += [
            Column("+ XLA", lambda row: number(row.ratio("splash", "end_to_end")), 6),
            Column("ratio", lambda row: number(_ratio(row)), 6),
            Column("target", lambda row: number(row.case.target), 6),
            Column("", RATIO.verdict, 6, left=True),
        ]
    return [
        *lines,
        Column("util >=", lambda row: _percent(row.case.utilisation_target), 7),
        Column("", UTILISATION.verdict, 6, left=True),
    ]


def summary(rows: Sequence[Row]) -> str:
    """Of every kind of target how many were met, and the row furthest from its own; then what did not compile."""
    lines = []
    for goal in (RATIO, UTILISATION):
        judged = [row for row in rows if goal.verdict(row)]
        if judged:
            met = sum(goal.verdict(row) == "met" for row in judged)
            worst = max(judged, key=lambda row: _distance(goal, row))
            figures = (
                f"{number(goal.reached(worst))}, target {'<=' if goal.most else '>='} {number(goal.target(worst))}"
            )
            lines.append(f"{goal.label}: {met} of {len(judged)} targets met; worst: {worst.case.name}, {figures}")
    for peer in [name for name in rows[0].estimates if name != "jattn"] if rows else []:
        lines.append(f"{peer}: {covered([row.estimates[peer] for row in rows])}")
    for row in rows:
        for name, one in row.estimates.items():
            if one.milliseconds is None:
                reason = one.errors[0] if one.errors else "no setting is counted"
                lines.append(f"{row.case.name}: no estimate for {name}: {reason}")
    return "\n".join(lines)


def covered(estimates: Iterable[Estimate]) -> str:
    """How many of a contender's settings stand behind its estimates."""
    parts = [part for one in estimates for part in one.parts.values()]
    counted, hopeless, of = (sum(one[n] for one in parts) for n in range(3))
    left = of - counted - hopeless
    more = f"; {left} are left, which --settings all counts" if left else ""
    return f"{counted} of its {of} settings are counted, {hopeless} cannot be the best{more}"


COVERAGE = ("| case | peer | counted | cannot be the best | of |", "|---|---|---|---|---|")


def coverage(case: Case, peer: str, one: Estimate) -> list[str]:
    """Rows of the table of settings: for each part of the case how many were counted."""
    return [
        f"| {replace(case, direction=direction).name} | {peer} | {' | '.join(map(str, part))} |"
        for direction, part in one.parts.items()
    ]


def markdown(rows: Sequence[Row], entries: Sequence[Published]) -> str:
    """The tables of the README: by pass, for every chip jattn's and splash's kernels, and both with what XLA does; and
    beside splash's the times of its `entries`."""
    return "\n\n".join(
        _markdown([row for row in rows if row.case.direction == direction], entries)
        for direction in dict.fromkeys(row.case.direction for row in rows)
    )


def _markdown(rows: Sequence[Row], entries: Sequence[Published]) -> str:
    chips = list(dict.fromkeys(row.case.chip for row in rows))
    timed = [chip for chip in chips if any(_published(row.case, entries) for row in rows if row.case.chip == chip)]
    titles = ["mask", "b h t d"]
    for chip in chips:
        titles += [f"{chip} kernels", f"{chip} + XLA", *([f"{chip} splash, timed"] if chip in timed else [])]
    lines = [titles, ["---"] * len(titles)]
    by_case = {(row.case.mask, row.case.shape, row.case.chip): row for row in rows}
    for mask, shape in dict.fromkeys((row.case.mask, row.case.shape) for row in rows):
        cells = [mask, shape.replace("x", " ")]
        for chip in chips:
            row = by_case.get((mask, shape, chip))
            cells += ["-", "-"] if row is None else [_pair(row, "milliseconds"), _pair(row, "end_to_end")]
            if chip in timed:
                cells.append(number(row and _published(row.case, entries)))
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _pair(row: Row, time: str) -> str:
    return " / ".join(number(getattr(one, time)) for one in row.estimates.values())


def _published(case: Case, entries: Sequence[Published]) -> float | None:
    """What tokamax's cache says a call of this shape takes, forward and backward timed apart."""
    passes = ("lse", "bwd") if case.backward else ("fwd",)
    wanted = [replace(case, direction=one) for one in passes]
    times = {one.case: one.milliseconds for one in entries if one.group == 1}
    return sum(times[one] for one in wanted) if all(one in times for one in wanted) else None


def _distance(goal: Goal, row: Row) -> float:
    reached, target = goal.reached(row), goal.target(row)
    assert reached is not None
    assert target is not None
    return reached / target if goal.most else target / reached


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}%"
