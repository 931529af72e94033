"""The table of `python -m bench cpu`, and its summary, each figure next to its target."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from bench._passes import DIRECTIONS, TITLES
from bench._report import Column, aligned, number
from bench.cpu._cases import MASKS, NORMALIZERS, SMALL
from bench.cpu._contenders import JATTN
from bench.cpu._measure import Row

LONG = 2048  # the length from which the target against jax.nn counts


class Finding(NamedTuple):
    """One line of the summary: a ratio, and the least it ought to be, if that was promised."""

    label: str
    value: float
    target: float | None = None


class Limit(NamedTuple):
    """One line of the summary: a number, and the most it ought to be."""

    label: str
    value: float
    most: float
    suffix: str = "x"


def columns(names: Sequence[str], baseline: Mapping[str, float] | None = None) -> list[Column[Row]]:
    """The table's columns for these contenders, jattn first; `baseline`: jattn's earlier seconds by case name."""
    peers = names[1:]
    return [
        Column("mask", lambda row: row.case.group or row.case.mask, 10, left=True),
        Column("pass", lambda row: row.case.direction, 6, left=True),
        *(Column(axis, lambda row, axis=axis: str(getattr(row.case, axis)), width) for axis, width in _AXES.items()),
        *(
            column
            for name in names
            for column in (
                Column(f"{name} ms", lambda row, name=name: number(row.median(name), 1e3), 9),
                Column("quartiles", lambda row, name=name: _quartiles(row, name), 12),
            )
        ),
        *(Column(f"{name} GF/s", lambda row, name=name: number(row.gflops(name)), 10) for name in names),
        *(Column(f"{peer}/jattn", lambda row, peer=peer: number(row.ratio(peer), suffix="x"), 11) for peer in peers),
        Column("rounds", lambda row: "/".join(str(len(row.seconds.get(name, ())) or "-") for name in names), 8),
        Column("max diff", _difference, 9),
        *([] if baseline is None else [Column("was/now", lambda row: number(_speedup(row, baseline), suffix="x"), 8)]),
    ]


_AXES = {"t": 5, "d": 3, "b": 3, "h": 2, "keys": 5, "key_heads": 9}


def _quartiles(row: Row, name: str) -> str:
    quartiles = row.quartiles(name)
    return "-" if quartiles is None else "..".join(number(x, 1e3) for x in quartiles)


def _difference(row: Row) -> str:
    return f"WRONG: {','.join(row.wrong)}" if row.wrong else number(max(row.differences.values(), default=None))


def _speedup(row: Row, baseline: Mapping[str, float]) -> float | None:
    was, now = baseline.get(row.case.name), row.median(JATTN.name)
    return None if was is None or now is None else was / now


def geometric_mean(values: Sequence[float]) -> float:
    """exp(mean(log(values)))."""
    return math.exp(sum(map(math.log, values)) / len(values))


def findings(every: Sequence[Row]) -> list[Finding]:
    """The summary, as far as the rows allow: of the square cases means and the worst against torch and means against
    jax.nn; of the named ones each against torch, and the worst of all against jax.nn."""
    rows = [row for row in every if not row.case.group]

    def mean(label: str, peer: str, target: float | None, wanted: Callable[[Row], bool] = lambda row: True):
        ratios = [ratio for row in rows if wanted(row) and (ratio := row.ratio(peer)) is not None]
        return [Finding(f"{label} ({len(ratios)} cases)", geometric_mean(ratios), target)] if ratios else []

    against_torch = [(ratio, row.case.name) for row in rows if (ratio := row.ratio("torch")) is not None]
    worst = min(against_torch, default=None)
    return [
        *mean("torch / jattn, geometric mean", "torch", 1.0),
        *mean("torch / jattn, geometric mean, forward", "torch", None, lambda row: not row.case.backward),
        *mean("torch / jattn, geometric mean, forward+backward", "torch", None, lambda row: row.case.backward),
        *(one for mask in MASKS for one in mean(f"torch / jattn, geometric mean, {mask}", "torch", None, _has(mask))),
        *([] if worst is None else [Finding(f"torch / jattn, worst case: {worst[1]}", worst[0], 0.8)]),
        *mean(f"jax.nn / jattn, geometric mean, t >= {LONG}", "jax", 5.0, lambda row: row.case.t >= LONG),
        *mean("jax.nn / jattn, geometric mean", "jax", None),
        *_named_findings(every),
    ]


def _named_findings(rows: Sequence[Row]) -> list[Finding]:
    named = [(row, ratio) for row in rows if row.case.group and (ratio := row.ratio("torch")) is not None]
    named_findings = [Finding(f"torch / jattn, {row.case.name}", ratio) for row, ratio in named]
    small = [ratio for row, ratio in named if row.case.group in SMALL]
    if small:
        label = f"torch / jattn, geometric mean, small ones ({len(small)} cases)"
        named_findings.append(Finding(label, geometric_mean(small), 0.8))
    against_jax = [(ratio, row.case.name) for row in rows if (ratio := row.ratio("jax")) is not None]
    if against_jax:
        worst, name = min(against_jax)
        named_findings.append(Finding(f"jax.nn / jattn, worst case: {name}", worst, 1.0))
    return named_findings


def sparse_limits(rows: Sequence[Row]) -> list[Limit]:
    """How much longer the sparse normalisers take than softmax of the same scores."""
    seconds = {(row.case.group, row.case.direction): row.median(JATTN.name) for row in rows}
    return [
        Limit(f"{name} / softmax, {TITLES[way]}", sparse / soft, 4.0)
        for name in NORMALIZERS[1:]
        for way in DIRECTIONS
        if (sparse := seconds.get((name, way))) and (soft := seconds.get((NORMALIZERS[0], way)))
    ]


def _has(mask: str) -> Callable[[Row], bool]:
    return lambda row: row.case.mask == mask


def summary(listed: Sequence[Finding | Limit]) -> str:
    """The findings as text, each next to its target."""
    suffix = lambda one: one.suffix if isinstance(one, Limit) else "x"
    return (
        aligned([(one.label, number(one.value, suffix=suffix(one)), _verdict(one)) for one in listed]) if listed else ""
    )


def _verdict(one: Finding | Limit) -> str:
    if isinstance(one, Limit):
        shown = number(one.most, suffix=one.suffix)
        return f"target <= {shown}: {'met' if one.value <= one.most else 'MISSED'}"
    if one.target is None:
        return ""
    return f"target >= {number(one.target, suffix='x')}: {'met' if one.value >= one.target else 'MISSED'}"
