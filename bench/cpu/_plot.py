"""The plot of `python -m bench cpu`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench._passes import DIRECTIONS, TITLES
from bench.cpu._cases import MASKS
from bench.cpu._measure import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"jattn": "tab:blue", "torch": "tab:orange", "jax": "tab:green"}


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


def _dress(panel: Axes, title: str, lengths: Sequence[int]) -> None:
    panel.set_title(title)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xticks(lengths, [str(t) for t in lengths], rotation=45)
    panel.tick_params(labelleft=True)
    panel.minorticks_off()
    panel.grid(alpha=0.3)
