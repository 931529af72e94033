"""The table of `python -m bench decode`, its targets and its plot."""

from collections.abc import Sequence
from pathlib import Path

from jattn_kernels.chips import TPUS

from bench._report import Column, number
from bench.decode._rows import Row

COLUMNS: list[Column[Row]] = [
    Column("machine", lambda row: row.machine, 7, left=True),
    Column("cache", lambda row: row.case.title, 10, left=True),
    Column("b", lambda row: str(row.case.b), 3),
    Column("fill", lambda row: str(row.case.fill), 6),
    Column("of", lambda row: str(row.case.n), 6),
    Column("contender", lambda row: row.contender, 15, left=True),
    Column("ms", lambda row: number(row.milliseconds), 8),
    Column("around", lambda row: number(row.around), 8),
    Column("starts", lambda row: "-" if row.starts is None else str(row.starts), 6),
    Column("tokens/s", lambda row: number(row.tokens), 9),
    Column("limit ms", lambda row: number(row.limit), 8),
    Column("x limit", lambda row: number(row.ratio), 7),
    Column("", lambda row: row.error[:60], 6, left=True),
]


def target(row: Row) -> float | None:
    """The most times its bytes that jattn's step may take on a TPU; none was set for the smallest."""
    case = row.case
    if row.machine not in TPUS or row.contender != "jattn" or case.b < 8 or case.seen < 1024:
        return None
    if case.seen < 8192:
        return 1.5
    return 1.35 if case.kind == "paged" else 1.25


def summary(rows: Sequence[Row]) -> str:
    """Of the targets how many are met, and the row furthest from its own; of the CPU jattn's least lead."""
    judged = [(row.ratio / most, row) for row in rows if (most := target(row)) and row.ratio is not None]
    lines = []
    if judged:
        _, row = max(judged, key=lambda one: one[0])
        met = sum(share <= 1 for share, _ in judged)
        worst = f"worst: {row.machine} {row.case.name}, {number(row.ratio)}, target <= {number(target(row))}"
        lines.append(f"TPU, times the limit: {met} of {len(judged)} targets met; {worst}")
    ours = {row.case: row for row in rows if (row.machine, row.contender) == ("cpu", "jattn")}
    leads = [
        (row.milliseconds / mine.milliseconds, row)
        for row in rows
        if row.machine == "cpu" and row.contender != "jattn" and row.milliseconds is not None
        if (mine := ours.get(row.case)) is not None and mine.milliseconds is not None
    ]
    if leads:
        least, row = min(leads, key=lambda one: one[0])
        met = sum(lead >= 1 for lead, _ in leads)
        worst = f"least: {row.contender}, {row.case.name}, {number(least)}"
        lines.append(f"CPU, peer over jattn >= 1: {met} of {len(leads)} met; {worst}")
    return "\n".join(lines)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Times the limit over the fill, a panel for each machine and batch; one line is the memory's speed."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    panels = list(dict.fromkeys((row.machine, row.case.b) for row in rows if row.ratio is not None))
    if not panels:
        return
    figure = Figure(figsize=(1 + 4.2 * len(panels), 5), dpi=110, layout="constrained")
    curves = list(dict.fromkeys((row.contender, row.case.title) for row in rows if row.ratio is not None))
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels, strict=True):
        for n, (contender, title) in enumerate(curves):
            points = sorted(
                (row.case.fill, row.ratio)
                for row in rows
                if (row.machine, row.case.b) == panel and (row.contender, row.case.title) == (contender, title)
                if row.ratio is not None
            )
            dashes = "-" if contender == "jattn" else "--"
            label = f"{contender}, {title}"
            axes.plot(
                *zip(*points, strict=True), dashes, marker="o", color=f"C{n % 10}", label=label
            ) if points else None
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set(xscale="log", yscale="log", xlabel="keys in the cache", title=f"{panel[0]}, batch {panel[1]}")
        axes.set_xticks(fills := sorted({row.case.fill for row in rows}), [str(fill) for fill in fills])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 3, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small")
    first = figure.axes[0]
    first.set_ylabel("time of a step / time of its bytes")
    # A tick beside that of 1; once all is drawn, since panels share their limits.
    first.set_ylim(top=max(1.25, first.get_ylim()[1]))
    figure.savefig(path)
