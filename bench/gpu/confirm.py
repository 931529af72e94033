"""`python -m bench gpu --confirm FILE`: a recorded check becomes the reason to choose the backend on that chip.

The record stays in the repository; the table that the library ships names it, with device and date.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jattn_kernels import tables

from bench._cli import complain
from bench._paths import ROOT
from bench._report import write_json
from bench.gpu.tune import document

_BAD = ("WRONG", "failed", "not run")


def run(program: str, record: Path, table: Path, root: Path = ROOT) -> int:
    """Add what the record, a file below `root`, shows to the table; 2 with a line where that may not be relied on."""
    try:
        report = json.loads(record.read_text())
        path = record.resolve().relative_to(root).as_posix()
        rows = confirmed(report, path)
    except (OSError, ValueError, KeyError) as error:
        return complain(program, f"{record}: {error}")
    kept = document(table)
    same = lambda row: (row["chip"], row["backend"], row["dtype"])
    rest = [row for row in kept.get("confirmed", ()) if same(row) not in {same(row) for row in rows}]
    write_json(table, {"entries": [], **kept, "confirmed": [*rest, *rows]})
    print(f"{len(rows)} dtypes of {rows[0]['backend']} confirmed on {rows[0]['chip']}, in {table}")
    return 0


def confirmed(record: Mapping[str, Any], path: str) -> list[dict[str, Any]]:
    """A row of `jattn_kernels.tables.Confirmed` for each dtype that was run on a chip and found right, whole.

    Raises:
      ValueError: the record is not whole, not of a known chip, or something in it is not right.
    """
    machine, rows = record["machine"], record["rows"]
    bad = [row["name"] for row in rows if row["status"].split(":")[0] in _BAD]
    right = {row["dtype"] for row in rows if row["status"] == "right"}
    if not record["complete"] or not machine.get("chip"):
        raise ValueError("the check is not complete, or not of a chip in jattn_kernels.chips")
    if bad or not right:
        raise ValueError(f"not all is right: {', '.join(bad) or 'nothing ran'}")
    named = [(row["name"], row["dtype"]) for row in rows if row["status"] == "right"]
    has = lambda kind, dtype: any(name.startswith(kind) and x == dtype for name, x in named)
    passes = lambda dtype: [*tables.PASSES, *(kind for kind in (tables.PAGES, tables.NARROW) if has(kind, dtype))]
    shared = {"chip": machine["chip"], "backend": record["implementation"]}
    dated = {"device": machine["device"], "date": str(machine["date"])[:10], "run": path}
    return [{**shared, "passes": passes(dtype), "dtype": dtype, **dated} for dtype in sorted(right)]
