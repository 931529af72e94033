"""`python -m bench zoo`: trains every task of the zoo in every variant and writes what each came to.

Runs are kept under --out and go on from where they were stopped; a finished one is only read.  The figures go to
bench/zoo.md, and into the package, where `python -m jattn.zoo` lists them; those of tasks not named stay as they were.
"""

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench import _machine
from bench._cli import Parser, choices, complain, install, missing
from bench._paths import OUT
from bench._report import facts_line
from jattn.zoo import EXTRAS, TASKS, _figure
from jattn.zoo._figure import Figure

RUNS = OUT / "zoo"
PAGE = Path(__file__).parent / "zoo.md"

Figures = Mapping[str, Mapping[str, Figure]]  # task -> variant -> figure


def main(
    arguments: Sequence[str],
    page: Path = PAGE,
    record: Path = _figure.RECORD,
    *,
    call: Callable[[Sequence[str]], int] = subprocess.call,
) -> int:
    """Train, and write the page and the record; 2 if the command line is wrong, something is not installed or a run
    fails.

    Args:
        arguments: the command line.
        page: where figures stand for readers.
        record: where they stand for `python -m jattn.zoo`.
        call: runs a command and gives its exit status.
    """
    parser = Parser(prog="bench zoo", description=__doc__)
    parser.add_argument("--task", type=choices(TASKS), default=TASKS, help=f"of {','.join(TASKS)}; default: all")
    parser.add_argument("--seed", default="0", help="of every run; default: 0")
    parser.add_argument(
        "--out", type=Path, default=RUNS, metavar="DIR", help="where runs are kept; default: bench/out/zoo"
    )
    options = parser.parse_args(arguments)
    if absent := missing(EXTRAS):
        return complain(parser.prog, f"{' and '.join(absent)} not installed: {install('zoo')}")
    records = dict(_figure.recorded(record))
    for task in options.task:
        figures = {}
        for label, flags in importlib.import_module(f"jattn.zoo.{task}").VARIANTS.items():
            out = options.out / task / re.sub(r"\W+", "-", label)
            command = [sys.executable, "-m", "jattn.zoo", task, *flags, "--seed", options.seed, "--out", str(out)]
            print(f"\n{task}, {label}: python -m jattn.zoo {' '.join(command[3:])}", flush=True)
            if call(command) or (figure := _figure.load(out)) is None:
                return complain(parser.prog, f"{task}, {label}: the run came to no figure")
            figures[label] = figure
        records[task] = figures
        _write({name: records[name] for name in TASKS if name in records}, page, record)
    print(f"\n{page.read_text()}\nWritten: {page}, {record}")
    return 0


def _write(figures: Figures, page: Path, record: Path) -> None:
    as_json = {
        task: {label: figure._asdict() for label, figure in labelled.items()} for task, labelled in figures.items()
    }
    record.write_text(json.dumps(as_json, indent=1) + "\n")
    page.write_text(as_page(figures, facts_line(_machine.facts(["jattn", "jax", "flax", "optax"]))))


def as_page(figures: Figures, machine: str) -> str:
    """The figures as a page of Markdown."""
    lines = [
        "# What the zoo's tasks come to",
        "",
        "Made by `python -m bench zoo`: every task in every variant, with the default flags otherwise, seed 0 unless",
        "the command said another. Figures are of examples held out; seconds are of training, compilation and all",
        f"evaluations but the last, on a machine that may have been busy. Last run on: {machine}.",
        "",
        "| task | variant | figure | | baseline | steps | seconds |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {task} | {label} | {one.metric} | {one.shown} | {_baseline(one)} | {one.step} | {one.seconds:.0f} |"
            for task, labelled in figures.items()
            for label, one in labelled.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def _baseline(figure: Figure) -> str:
    return "" if figure.baseline is None else f"{figure.baseline[0]} {figure.baseline[1]}"
