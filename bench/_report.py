"""What every machine's report is made of: tables that print a row at a time, numbers, JSON, a progress bar."""

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

Row = TypeVar("Row")


class Column(NamedTuple, Generic[Row]):
    """A title, and a row's cell under it; left-aligned if `left`."""

    title: str
    cell: Callable[[Row], str]
    width: int
    left: bool = False


def number(value: float | None, scale: float = 1.0, suffix: str = "") -> str:
    """Three significant digits, "-" for None: 0.123, 1.23, 123, 12345, 1.2e-07."""
    if value is None:
        return "-"
    value *= scale
    if value and abs(value) < 1e-3:
        return f"{value:.1e}{suffix}"
    digits = 2 - math.floor(math.log10(abs(value))) if value and math.isfinite(value) else 0
    return f"{value:.{max(0, min(3, digits))}f}{suffix}"


def header(columns: Sequence[Column[Any]]) -> str:
    """The line of titles."""
    return _line((column, column.title) for column in columns)


def line(columns: Sequence[Column[Row]], row: Row) -> str:
    """A row's line; the widths are fixed, so that rows can be printed as they come."""
    return _line((column, column.cell(row)) for column in columns)


def _line(cells: Iterable[tuple[Column[Any], str]]) -> str:
    return "  ".join(text.ljust(c.width) if c.left else text.rjust(c.width) for c, text in cells).rstrip()


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A small table, every column as wide as its widest cell and right-aligned but for the first."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows)
    return "\n".join("  ".join(cells).rstrip() for cells in lines)


def facts_line(facts: Mapping[str, object]) -> str:
    """The facts about a machine, before its table."""
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def progress(cases: Sequence[Any]) -> Any:
    """A tqdm bar over the cases; none where stderr is not a terminal."""
    from tqdm import tqdm

    return tqdm(cases, disable=None, unit="case")


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document whole or not at all: an interrupted run leaves its last complete state."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(document, indent=1) + "\n")
    os.replace(part, path)
