"""Tables, summaries and plots of the stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jattn_kernels.chips import GPUS

from bench._passes import DIRECTIONS, TITLES
from bench._report import Column, number
from bench.gpu._cases import Case
from bench.gpu._contenders import FORWARD, Contender
from bench.gpu._estimate import Estimate, estimate, role_of, tile_columns
from bench.gpu._kernels import CompiledKernel, from_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    "jattn": "tab:blue",
    "blockwise": "tab:cyan",
    "tokamax": "tab:orange",
    "mgpu": "tab:green",
    "cudnn": "tab:red",
    "xla": "tab:gray",
    "torch": "tab:purple",
}
STATIC_LEGEND = """\
Nothing ran on a GPU: Mosaic's PTX was assembled by ptxas, and the hot loops (the innermost with tensor instructions) of
what nvdisasm shows were counted. [2, 4096, 8, d] bfloat16 (mgpu: float16), causal but for plain; decode: [8, 1, 32, d]
beside 8192 keys of 8 heads, lengths known when the call runs.
instr full, partial: instructions of one warp of the four that compute a tile of 64 x 128 scores (forward) or 64 x 64
  (dq, dkv, dbias), in the cheapest and in the dearest hot loop; loops over other tiles are scaled. A kernel without a
  mask has one. tile: the scores of four warps in one turn of the loop, as its products say (on Blackwell, what it
  reads of tensor memory: forward once, backward twice the scores).
spilled: bytes that ptxas stored and loaded, anywhere; hot: local loads and stores in a turn of a hot loop.
CTAs: blocks that a multiprocessor holds at once, by registers, threads and shared memory.
tensor, issue, special, alu, float: cycles that a multiprocessor's units need for a full tile: its tensor cores at
  their peak, its four schedulers at an instruction a cycle each; exponentials and the like; integers, comparisons and
  selections; multiplications and additions.
ms: all visited tiles at the slowest of these, spread evenly over the multiprocessors at the clock of chips.py. An
  estimate and a lower bound, not a measurement: no waiting, no start and no end, and of memory only that decode reads
  keys and values."""


@dataclass(frozen=True)
class StaticRow:
    """A kernel of a contender's program for a case, or why there is none."""

    case: Case
    contender: str
    role: str | None = None
    kernel: CompiledKernel | None = None
    estimate: Estimate | None = None
    error: str | None = None

    @property
    def name(self) -> str:
        return f"{self.case.chip}-{self.case.ask}-d{self.case.d}-{self.role or self.case.direction}"

    @property
    def local(self) -> int | None:
        """Local loads and stores in the hot loops."""
        return self.kernel and sum(loop.pipes.get("local", 0) for loop in self.kernel.loops)

    def as_json(self) -> dict[str, Any]:
        """Everything, with the name."""
        kernel = self.kernel and self.kernel.as_json(GPUS[self.case.chip])
        rest = {"role": self.role, "error": self.error, "estimate": self.estimate and asdict(self.estimate)}
        return {"name": self.name, "contender": self.contender, "case": asdict(self.case), **rest, "kernel": kernel}


def static_rows(case: Case, contender: Contender, answer: Mapping[str, Any]) -> list[StaticRow]:
    """A row for each kernel of an answer; one that stands there twice, in a branch too, has one."""
    rows = []
    kernels = list(map(from_json, answer["kernels"]))
    for place, kernel in enumerate(kernels):
        if kernel in kernels[:place]:
            continue
        role = role_of(contender, kernel, place, case.d)
        estimated = estimate(kernel, role, case, GPUS[case.chip]) if role is not None else None
        rows.append(StaticRow(case, contender.name, role, kernel, estimated))
    return rows


def static_columns() -> list[Column[StaticRow]]:
    """The table's columns."""

    def of_kernel(title: str, width: int, cell: Any) -> Column[StaticRow]:
        return Column(title, lambda row: "-" if row.kernel is None else cell(row), width)

    def of_estimate(title: str, width: int, cell: Callable[[Estimate], str]) -> Column[StaticRow]:
        return Column(title, lambda row: "-" if row.estimate is None else cell(row.estimate), width)

    units = ("tensor", "issue", "special", "alu", "float")
    return [
        Column("chip", lambda row: row.case.chip, 4, left=True),
        Column("case", lambda row: row.case.ask, 8, left=True),
        Column("d", lambda row: str(row.case.d), 3),
        Column("whose", lambda row: row.contender, 7, left=True),
        Column("kernel", lambda row: row.role or (row.kernel.name[:8] if row.kernel else "-"), 8, left=True),
        of_kernel("regs", 4, lambda row: str(row.kernel.registers)),
        of_kernel("spilled", 7, lambda row: str(row.kernel.spilled)),
        of_kernel("hot", 4, lambda row: str(row.local)),
        of_kernel("shared KB", 9, lambda row: number(row.kernel.shared, 1 / 1024)),
        of_kernel("CTAs", 4, lambda row: str(row.kernel.blocks_per_core(GPUS[row.case.chip]))),
        of_estimate("tile", 8, lambda one: f"{one.rows} x {one.columns}"),
        of_estimate("instr full", 10, lambda one: f"{one.full.instructions:.0f}"),
        of_estimate("partial", 7, lambda one: f"{one.partial.instructions:.0f}"),
        *(of_estimate(unit, 7, lambda one, unit=unit: f"{one.full.cycles[unit]:.0f}") for unit in units),
        of_estimate("bound", 7, lambda one: one.bound),
        of_estimate("ms", 6, lambda one: number(one.milliseconds)),
    ]


def static_failure(row: StaticRow) -> str:
    """A line for what did not compile."""
    where = f"{row.case.chip:4}  {row.case.ask:8}  {row.case.d:3}  {row.contender:7}"
    return f"{where}  {row.case.direction}: {row.error}"


def static_summary(rows: Sequence[StaticRow]) -> str:
    """What compiled, what spills in a hot loop, and jattn's instructions beside each peer's."""
    kernels = [row for row in rows if row.kernel is not None]
    failed = [row for row in rows if row.error is not None]
    spilling = [f"{row.contender} {row.name}" for row in kernels if row.local]
    lines = [f"{len(kernels)} kernels compiled, {len(failed)} programs did not"]
    lines.append(f"local loads or stores in a hot loop: {', '.join(spilling) or 'none'}")
    ours = {row.name: row.estimate for row in rows if row.contender == "jattn" and row.estimate}
    for row in rows:
        if row.contender == "jattn" or row.estimate is None or row.name not in ours:
            continue
        one = ours[row.name]
        counts = [f"{x.full.instructions:.0f} / {x.partial.instructions:.0f}" for x in (one, row.estimate)]
        lines.append(f"{row.name}: jattn {counts[0]}, {row.contender} {counts[1]} instructions full / partial")
    return "\n".join(lines)


def plot_static(rows: Sequence[StaticRow], path: Path) -> None:
    """Instructions of full and partial tiles: a panel for each chip (down) and kernel (across), d = 128 where it is."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if row.estimate is not None]
    if not rows:
        return
    chips = list(dict.fromkeys(row.case.chip for row in rows))
    roles = sorted({str(row.role) for row in rows}, key=lambda role: (role != FORWARD, role))
    figure = Figure(figsize=(1 + 5 * len(roles), 1 + 3.5 * len(chips)), dpi=110, layout="constrained")
    grid = figure.subplots(len(chips), len(roles), squeeze=False)
    for across, chip in zip(grid, chips, strict=True):
        for panel, role in zip(across, roles, strict=True):
            shown = [row for row in rows if (row.case.chip, row.role) == (chip, role)]
            widths = {row.case.d for row in shown}
            d = 128 if 128 in widths else min(widths, default=128)
            _bars(panel, [row for row in shown if row.case.d == d])
            panel.set_title(f"{chip}, {role}, d = {d}, 64 x {tile_columns(role)} scores", fontsize=9)
    across = grid[:, 0]
    for panel in across:
        panel.set_ylabel("instructions of a warp")
    handles = {label: handle for panel in grid.flat for handle, label in zip(*panel.get_legend_handles_labels())}  # noqa: B905
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=max(1, len(handles)))
    figure.savefig(path)


def _bars(panel: Axes, rows: Sequence[StaticRow]) -> None:
    asks = list(dict.fromkeys(row.case.ask for row in rows))
    names = list(dict.fromkeys(row.contender for row in rows))
    width = 0.8 / max(1, len(names))
    for n, name in enumerate(names):
        estimates = {row.case.ask: row.estimate for row in rows if row.contender == name and row.estimate is not None}
        places = [place + width * (n - (len(names) - 1) / 2) for place, ask in enumerate(asks) if ask in estimates]
        partial = [estimates[ask].partial.instructions for ask in asks if ask in estimates]
        full = [estimates[ask].full.instructions for ask in asks if ask in estimates]
        panel.bar(places, partial, width, color=COLOURS[name], alpha=0.4, label=f"{name}, partial tile")
        panel.bar(places, full, width, color=COLOURS[name], label=f"{name}, full tile")
    panel.set_xticks(range(len(asks)), asks, rotation=45, fontsize=8)
    panel.grid(alpha=0.3, axis="y")


def plot_times(rows: Sequence[Any], names: Sequence[str], title: str, path: Path) -> None:
    """Useful TFLOP/s over t at d = 128: a panel for each ask (across) and pass (down).

    Of as many queries as keys: a step that decodes is bound by memory, and says nothing here.
    """
    from matplotlib.figure import Figure

    rows = [row for row in rows if row.case.d == 128 and not row.case.s]
    if not rows:
        return
    asks = list(dict.fromkeys(row.case.ask for row in rows))
    figure = Figure(figsize=(1 + 3 * len(asks), 7), dpi=110, layout="constrained")
    grid = figure.subplots(len(DIRECTIONS), len(asks), squeeze=False, sharex=True, sharey=True)
    for across, direction in zip(grid, DIRECTIONS, strict=True):
        across[0].set_ylabel(f"useful TFLOP/s, {TITLES[direction]}")
        for panel, ask in zip(across, asks, strict=True):
            wanted = [row for row in rows if (row.case.ask, row.case.direction) == (ask, direction)]
            for name in names:
                points = sorted((row.case.t, speed) for row in wanted if (speed := row.teraflops(name)) is not None)
                style = {"color": COLOURS.get(name), "marker": "o", "markersize": 4}
                panel.plot([t for t, _ in points], [speed for _, speed in points], label=name, **style)
            panel.set_title(ask)
            panel.set_xscale("log", base=2)
            panel.grid(alpha=0.3)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(names))
    figure.suptitle(f"bfloat16 attention on {title}, [1, t, 16, 128]")
    figure.savefig(path)
