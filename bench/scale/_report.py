"""The table, the summary and the plot of `python -m bench scale`; and the table of what was compiled."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jattn_kernels.chips import CHIPS

from bench._passes import DIRECTIONS, TITLES
from bench._report import Column, number
from bench.scale._cases import COUNTS, WAYS, Case
from bench.scale._pods import PODS, Compiled, fits
from bench.scale._predict import Prediction

SHOWN = (4, 16, 64, 256)
TARGET = 0.9  # of efficiency, at the most chips and the longest sequence, causal


@dataclass(frozen=True)
class Row:
    """A case, and what is predicted for each number of chips on which it can be."""

    case: Case
    predictions: Sequence[Prediction]

    def at(self, chips: int) -> Prediction | None:
        return next((one for one in self.predictions if one.chips == chips), None)

    @property
    def last(self) -> Prediction:
        return self.predictions[-1]

    def as_json(self) -> dict[str, Any]:
        case = {**asdict(self.case), "way": self.case.way._asdict()}
        named = [asdict(one) for one in self.predictions]
        digits = lambda x: float(f"{x:.4g}") if isinstance(x, float) else x
        predicted = {field: [digits(one[field]) for one in named] for field in named[0]}
        return {"name": self.case.name, **case, "predictions": predicted}


COLUMNS: list[Column[Row]] = [
    Column("chip", lambda row: row.case.chip, 5, left=True),
    Column("t", lambda row: f"{row.case.t // 1024}k", 5),
    Column("h / g", lambda row: f"{row.case.h} / {row.case.g}", 7),
    Column("mask", lambda row: row.case.mask, 6, left=True),
    Column("pass", lambda row: row.case.direction, 6, left=True),
    Column("way", lambda row: row.case.way.name, 14, left=True),
    Column("chips", lambda row: str(row.last.chips), 5),
    Column("mesh", lambda row: f"{row.last.heads} x {row.last.sequence}", 8),
    Column("computes ms", lambda row: number(row.last.compute), 11),
    Column("sends MiB", lambda row: number(row.last.sent / 2**20), 9),
    Column("a step", lambda row: number(row.last.sent / 2**20 / row.last.sequence), 6),
    Column("in ms", lambda row: number(row.last.network), 7),
    Column("hidden", lambda row: f"{row.last.hidden:.0%}", 6),
    Column("ms", lambda row: number(row.last.total), 7),
    *[
        Column(f"{chips}", lambda row, chips=chips: _efficiency(row.at(chips)), 4)
        for chips in SHOWN
    ],
]  # fmt: skip


def _efficiency(one: Prediction | None) -> str:
    return "-" if one is None else f"{one.efficiency:.0%}"


def summary(rows: Sequence[Row]) -> str:
    """The best way at the target, on each chip: with heads along an axis of their own, and by the sequence alone."""
    lines = []
    for chip in dict.fromkeys(row.case.chip for row in rows):
        of = [row for row in rows if (row.case.chip, row.case.mask, row.case.way.kernels) == (chip, "causal", "jattn")]
        longest = max((row.case.t for row in of), default=0)
        of = [row for row in of if row.case.t == longest]
        chips = max((row.last.chips for row in of), default=0)
        groups = itertools.product(dict.fromkeys((row.case.h, row.case.g) for row in of), DIRECTIONS, (True, False))
        for (h, g), direction, heads in groups:
            own = [
                row
                for row in of
                if (row.case.h, row.case.g, row.case.direction, row.case.heads) == (h, g, direction, heads)
            ]
            best = max((row for row in own if row.at(chips)), key=lambda row: row.last.efficiency, default=None)
            if best is not None:
                one = best.last
                verdict = "met" if one.efficiency >= TARGET else "MISSED"
                case = f"{chip}, {chips} chips, t {longest}, h {h}, g {g}, causal, {TITLES[direction]}"
                way = f"{best.case.way.name} over {one.heads} x {one.sequence}"
                lines.append(f"{case}: {one.efficiency:.0%} by {way}, target >= {TARGET:.0%} {verdict}")
    for chip in dict.fromkeys(row.case.chip for row in rows):
        if (most := CHIPS[chip].linked) is not None:
            lines.append(f"{chip}: more than {most} are left out: the network that joins hosts is each site's own")
    return "\n".join(lines)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Efficiency over chips at the longest sequence, causal: a panel for each chip (across) and pass (down)."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if row.case.mask == "causal"]
    if not rows:
        return
    longest, heads = max(row.case.t for row in rows), rows[0].case.g
    rows = [row for row in rows if (row.case.t, row.case.g) == (longest, heads)]
    chips = list(dict.fromkeys(row.case.chip for row in rows))
    directions = [x for x in DIRECTIONS if any(row.case.direction == x for row in rows)]
    figure = Figure(figsize=(1 + 4 * len(chips), 1.5 + 3.2 * len(directions)), dpi=110, layout="constrained")
    grid = figure.subplots(len(directions), len(chips), squeeze=False, sharex=True, sharey=True)
    colours = dict(zip(WAYS, ("tab:cyan", "tab:blue", "tab:green", "tab:orange"), strict=True))
    for across, direction in zip(grid, directions, strict=True):
        across[0].set_ylabel("predicted efficiency")
        for panel, chip in zip(across, chips, strict=True):
            for row in rows:
                if (row.case.chip, row.case.direction) == (chip, direction):
                    label = f"{row.case.way.name}, {'heads x sequence' if row.case.heads else 'sequence alone'}"
                    points = [(one.chips, one.efficiency) for one in row.predictions]
                    style = {"linestyle": "-" if row.case.heads else "--", "marker": "o", "markersize": 3}
                    panel.plot(*zip(*points, strict=True), label=label, color=colours[row.case.way], **style)
            panel.axhline(TARGET, color="grey", linewidth=0.8)
            panel.set_title(f"{chip}, {TITLES[direction]}")
            panel.set_xscale("log", base=2)
            panel.set_xticks(COUNTS, [str(n) for n in COUNTS], fontsize=8)
            panel.minorticks_off()
            panel.set_ylim(0, 1.1)
            panel.grid(alpha=0.3)
    for panel in grid[-1]:
        panel.set_xlabel("chips")
    handles = {
        label: handle for panel in grid.flat for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4)
    case = rows[0].case
    figure.suptitle(f"One sequence of {longest:,}, causal, bfloat16, h = {case.h}, g = {case.g}, d = 128")
    figure.savefig(path)


def _loops(one: Compiled) -> str:
    """What becomes of what loops send; a program may be unrolled and have none."""
    if not any(x.loop for x in one.permutes):
        return "no loops"
    return "asynchronous" if one.asynchronous else "SYNCHRONOUS"


COMPILED: list[Column[Compiled]] = [
    Column("program", lambda one: one.name, 20, left=True),
    Column("topology", lambda one: PODS[one.name].topology, 11, left=True),
    Column("data model seq", lambda one: " x ".join(map(str, PODS[one.name].axes)), 14),
    Column("t", lambda one: f"{PODS[one.name].t // 1024}k", 5),
    Column("order", lambda one: PODS[one.name].order, 10, left=True),
    Column("in loops", lambda one: str(sum(x.loop for x in one.permutes)), 8),
    Column("beside", lambda one: str(sum(not x.loop for x in one.permutes)), 6),
    Column("behind kernels", lambda one: str(sum(x.asynchronous and bool(x.encloses) for x in one.permutes)), 14),
    Column("loops", _loops, 12, left=True),
    Column("temporaries", lambda one: f"{one.temporaries / 2**30:.2f} GiB", 11),
    Column("memory", lambda one: f"{one.memory / 2**30:.2f} of {_memory(one)}{'' if fits(one) else ' TOO MUCH'}", 16),
    Column("compiled in", lambda one: f"{one.seconds:.0f} s", 11),
]


def _memory(one: Compiled) -> str:
    return f"{CHIPS[PODS[one.name].chip].memory / 2**30:.0f} GiB"
