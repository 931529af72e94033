"""What every subcommand's command line shares: errors of one line and exit status 2."""

import argparse
import importlib.util
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn, TypeAlias

Missing: TypeAlias = Callable[[Iterable[str]], list[str]]
"""As `missing`: a command takes it as an argument, so that what it does where a package lacks can be tried anywhere."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line: no usage before them."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def missing(modules: Iterable[str]) -> list[str]:
    """Which of the modules are not installed, without importing any: that would take seconds."""
    return [name for name in modules if importlib.util.find_spec(name) is None]


def install(extras: str) -> str:
    """How to install extras, `aot,bench` say: from the checkout, in which the benchmarks stand."""
    return f"pip install -e '.[{extras}]'"


def positive(text: str) -> int:
    """An argparse type: an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def choices(allowed: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    """An argparse type: a comma-separated choice of names, e.g. `jax,torch`."""
    allowed = tuple(allowed)

    def parse(text: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(name for name in text.split(",") if name))
        unknown = [name for name in names if name not in allowed]
        if unknown or not names:
            raise argparse.ArgumentTypeError(f"{text!r} is not a comma-separated choice of {', '.join(allowed)}")
        return names

    return parse


def integers(text: str) -> tuple[int, ...]:
    """An argparse type: comma-separated positive integers, e.g. `64,128`."""
    return tuple(positive(part) for part in text.split(","))


def complain(program: str, message: str) -> int:
    """Print one line to stderr and return exit status 2."""
    print(f"{program}: {message}", file=sys.stderr)
    return 2
