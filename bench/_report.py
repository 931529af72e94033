"""What a run leaves behind: an aligned table, a summary next to the targets, JSON, and a plot."""

import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench._cases import DIRECTIONS, MASKS, NORMALIZERS, SMALL
from bench._contenders import JATTN
from bench._measure import Row

COLOURS = {"jattn": "tab:blue", "torch": "tab:orange", "jax": "tab:green"}
TITLES = {"fwd": "forward", "fwdbwd": "forward + backward"}
LONG = 2048  # the length from which the target against jax.nn counts


class Column(NamedTuple):
    """A title, and a row's cell under it; left-aligned if `left`."""

    title: str
    cell: Callable[[Row], str]
    width: int
    left: bool = False


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


def columns(names: Sequence[str], baseline: Mapping[str, float] | None = None) -> list[Column]:
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
    found = row.quartiles(name)
    return "-" if found is None else "..".join(number(x, 1e3) for x in found)


def _difference(row: Row) -> str:
    return f"WRONG: {','.join(row.wrong)}" if row.wrong else number(max(row.differences.values(), default=None))


def _speedup(row: Row, baseline: Mapping[str, float]) -> float | None:
    was, now = baseline.get(row.case.name), row.median(JATTN.name)
    return None if was is None or now is None else was / now


def number(value: float | None, scale: float = 1.0, suffix: str = "") -> str:
    """Three significant digits, "-" for None: 0.123, 1.23, 123, 12345, 1.2e-07."""
    if value is None:
        return "-"
    value *= scale
    if value and abs(value) < 1e-3:
        return f"{value:.1e}{suffix}"
    digits = 2 - math.floor(math.log10(abs(value))) if value and math.isfinite(value) else 0
    return f"{value:.{max(0, min(3, digits))}f}{suffix}"


def header(columns: Sequence[Column]) -> str:
    """The line of titles."""
    return _line((column, column.title) for column in columns)


def line(columns: Sequence[Column], row: Row) -> str:
    """A row's line; the widths are fixed, so that rows can be printed as they come."""
    return _line((column, column.cell(row)) for column in columns)


def _line(cells: Iterable[tuple[Column, str]]) -> str:
    return "  ".join(text.ljust(c.width) if c.left else text.rjust(c.width) for c, text in cells).rstrip()


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A small table, every column as wide as its widest cell and right-aligned but for the first."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows)
    return "\n".join("  ".join(cells).rstrip() for cells in lines)


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
    found = [Finding(f"torch / jattn, {row.case.name}", ratio) for row, ratio in named]
    small = [ratio for row, ratio in named if row.case.group in SMALL]
    if small:
        label = f"torch / jattn, geometric mean, small ones ({len(small)} cases)"
        found.append(Finding(label, geometric_mean(small), 0.8))
    against_jax = [(ratio, row.case.name) for row in rows if (ratio := row.ratio("jax")) is not None]
    if against_jax:
        worst, name = min(against_jax)
        found.append(Finding(f"jax.nn / jattn, worst case: {name}", worst, 1.0))
    return found


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


def summary(found: Sequence[Finding | Limit]) -> str:
    """The findings as text, each next to its target."""
    suffix = lambda one: one.suffix if isinstance(one, Limit) else "x"
    return (
        aligned([(one.label, number(one.value, suffix=suffix(one)), _verdict(one)) for one in found]) if found else ""
    )


def _verdict(one: Finding | Limit) -> str:
    if isinstance(one, Limit):
        shown = number(one.most, suffix=one.suffix)
        return f"target <= {shown}: {'met' if one.value <= one.most else 'MISSED'}"
    if one.target is None:
        return ""
    return f"target >= {number(one.target, suffix='x')}: {'met' if one.value >= one.target else 'MISSED'}"


def progress(cases: Sequence[Any]) -> Any:
    """A tqdm bar over the cases; none where stderr is not a terminal."""
    from tqdm import tqdm

    return tqdm(cases, disable=None, unit="case")


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document whole or not at all: an interrupted run leaves its last complete state."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(document, indent=1) + "\n")
    os.replace(part, path)


def plot(rows: Sequence[Row], names: Sequence[str], title: str, path: Path) -> None:
    """GFLOP/s of useful work over t, both logarithmic: a panel for each mask (across) and pass (down)."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if not row.case.group]
    if not rows:
        return
    masks = [mask for mask in MASKS if any(row.case.mask == mask for row in rows)]
    directions = [direction for direction in DIRECTIONS if any(row.case.direction == direction for row in rows)]
    figure = Figure(figsize=(1 + 4 * len(masks), 1.5 + 3.5 * len(directions)), dpi=110, layout="constrained")
    grid = figure.subplots(len(directions), len(masks), squeeze=False, sharex=True, sharey=True)
    curves = _curves(rows, names)
    for axes, direction in zip(grid, directions, strict=True):
        axes[0].set_ylabel("useful GFLOP/s")
        for panel, mask in zip(axes, masks, strict=True):
            for (name, d), style in curves.items():
                wanted = [
                    row for row in rows if (row.case.mask, row.case.direction, row.case.d) == (mask, direction, d)
                ]
                points = sorted((row.case.t, speed) for row in wanted if (speed := row.gflops(name)) is not None)
                panel.plot([t for t, _ in points], [speed for _, speed in points], label=f"{name}, d={d}", **style)
            _dress(panel, f"{mask}, {TITLES[direction]}", sorted({row.case.t for row in rows}))
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(names))
    figure.suptitle(title)
    figure.savefig(path)


def _curves(rows: Sequence[Row], names: Sequence[str]) -> dict[tuple[str, int], dict[str, Any]]:
    """A line style for every contender and width: the colour is the contender's, dashes and marker the width's."""
    widths = sorted({row.case.d for row in rows})
    looks = list(zip(itertools.cycle("os^v"), itertools.cycle(("-", "--", ":", "-.")), widths, strict=False))
    return {
        (name, d): {"color": COLOURS[name], "marker": marker, "linestyle": dashes, "markersize": 4}
        for name in names
        for marker, dashes, d in looks
    }


def _dress(panel: Any, title: str, lengths: Sequence[int]) -> None:
    panel.set_title(title)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xticks(lengths, [str(t) for t in lengths], rotation=45)
    panel.tick_params(labelleft=True)
    panel.minorticks_off()
    panel.grid(alpha=0.3)
