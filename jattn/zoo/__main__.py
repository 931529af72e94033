"""The command line: `python -m jattn.zoo [TASK] [flags]`, `python -m jattn.zoo fetch NAME ...`."""

from __future__ import annotations

import argparse
import importlib
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import jax

import jattn
from jattn import UnsupportedError
from jattn._extras import how_to_install
from jattn.backends import BACKENDS
from jattn.zoo import EXTRAS, TASKS, _archives, _figure
from jattn.zoo._archives import Archive
from jattn.zoo._errors import UsageError

if TYPE_CHECKING:
    from jattn.zoo._task import Task


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def run(options: argparse.Namespace, build: Callable[[argparse.Namespace], Task] | None = None) -> None:
    """Trains a task, or what `build` makes in its place; what is known to be wrong is said before data is made."""
    _need_extras()
    from jattn.zoo import _checkpoint, _mesh, _train

    given = vars(options)
    _mesh.check(given.get("mesh"), given.get("distributed", False))
    _check_implementation(options.implementation)
    _checkpoint.check(options.out, given)
    task = _task(options.task)
    _train.say(f"preparing {task.DATA}")
    _train.train((build or task.build)(options), options.steps, options.out)


def main(
    argv: Sequence[str] | None = None,
    *,
    archives: Mapping[str, Archive] = _archives.ARCHIVES,
    run: Callable[[argparse.Namespace], None] = run,
    fetch: Callable[[Archive], Path] = _archives.fetch,
) -> int:
    """Runs the command line and returns its exit code: 0, 2 after a one-line error, 130 after Ctrl-C.

    Args:
        argv: the words after `python -m jattn.zoo`.
        archives: those that can be fetched, by name.
        run: what is done with the options of a task.
        fetch: what is done with an archive; returns where it is.
    """
    options = argparse.Namespace(task=None)
    try:
        options = _parser(archives).parse_args(argv)
        if options.task is None:
            _list_tasks()
        elif options.task == "fetch":
            _fetch(options.names, archives, fetch)
        else:
            run(options)
    except (UsageError, UnsupportedError) as error:
        print(f"python -m jattn.zoo: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nstopped{_going_on(options)}", file=sys.stderr)
        return 130
    return 0


def _going_on(options: argparse.Namespace) -> str:
    """What the same command will do, after it was stopped."""
    if options.task not in TASKS:
        return ""
    kept = _figure.load(options.out)
    if kept is None:
        return " before a step was kept; the same command starts anew"
    return f"; the same command goes on from step {kept.step}"


def _need_extras() -> None:
    for name in EXTRAS:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise UsageError(f"{error.name} is not installed: {how_to_install('zoo')}") from error


def _parser(archives: Mapping[str, Archive]) -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m jattn.zoo", description="Whole models with their data and training.")
    subparsers = parser.add_subparsers(dest="task", metavar="TASK", help=f"one of: {', '.join(TASKS)}; or fetch")
    for name in TASKS:
        module = _task(name)
        task = subparsers.add_parser(
            name,
            description=f"{module.ABOUT} Data: {module.DATA}.",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        task.add_argument("--steps", type=_at_least(1), default=module.STEPS, help="train up to this step")
        task.add_argument("--seed", type=_at_least(0), default=0, help="of the parameters and of the order of the data")
        task.add_argument("--out", type=Path, default=Path("runs", name), help="where to save, and to go on from")
        task.add_argument(
            "--implementation", choices=[x.name for x in BACKENDS], help="insist on one; None lets jattn choose"
        )
        module.add_options(task)
    fetch = subparsers.add_parser("fetch", description="Downloads the data of tasks into the cache, checked.")
    fetch.add_argument("names", nargs="+", choices=(*TASKS, *archives), metavar="NAME", help="task or archive")
    return parser


def _task(name: str):
    return importlib.import_module(f"jattn.zoo.{name}")


def _at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) < 2**31:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least} to {2**31 - 1}, got {text!r}")
        return int(text)

    return parse


def _list_tasks() -> None:
    for name in TASKS:
        module = _task(name)
        print(f"{name}\n    {module.ABOUT}\n    data: {module.DATA}")
        for needed in module.ARCHIVES:
            archive = _archives.ARCHIVES[needed]
            state = "in the cache" if _archives.is_here(archive) else f"python -m jattn.zoo fetch {needed}"
            print(f"    needs {archive}: {state}")
        print(f"    {_last(name)}\n    python -m jattn.zoo {name} --help")


def _last(name: str) -> str:
    """The figure of the last run here, else the one recorded."""
    here = _figure.load(Path("runs", name))
    if here is not None:
        return f"last figure: {here} ({Path('runs', name)})"
    kept = next(iter(_figure.recorded().get(name, {}).values()), None)
    return "no figure yet" if kept is None else f"last figure: {kept} (recorded; not yet trained here)"


def _fetch(names: Sequence[str], archives: Mapping[str, Archive], fetch: Callable[[Archive], Path]) -> None:
    for name in names:
        needed = _task(name).ARCHIVES if name in TASKS else (name,)
        for each in needed:
            print(f"{archives[each]}: {fetch(archives[each])}")
        if not needed:
            print(f"{name}: nothing to fetch, its data is installed")


def _check_implementation(name: str | None) -> None:
    """Raises UsageError where it cannot compute the plainest attention on this machine."""
    if name is None:
        return
    x = jax.ShapeDtypeStruct((1, 8, 1, 8), "float32")
    try:
        jattn.explain(x, x, x, implementation=name)
    except UnsupportedError as error:
        raise UsageError(f"argument --implementation: {error}") from error


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # what a model writes may be more than the terminal can print
    sys.exit(main())
