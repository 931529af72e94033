"""`python -m bench gpu --tune`: the best tile sizes and stages of jattn's GPU kernels, timed on the GPU that is here.

What beats the sizes that a call takes already goes into the table that the kernels read, with the device and the date.
Each case is written as it is found.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jattn_kernels.chips import GPUS

from bench._paths import ROOT
from bench._report import write_json
from bench.gpu._cases import TIMED, Case
from bench.gpu._children import COMMAND, Pool, at_once, environment_of
from bench.gpu._time import request, turn

TABLE = ROOT / "kernels" / "jattn_kernels" / "tables" / "gpu.json"
LIMIT = 45.0  # seconds of one candidate, its compilation included
STAGE_LIMIT = 1200.0
MARGIN = 0.02  # of the time of the sizes taken already, by which others have to be faster: medians differ by as much
MASKS = {"causal": "causal", "full": "plain", "window": "window"}
"""By mask, as the tables name it, the ask of `_terms.ASKS`."""

Fields = dict[str, Any]
Settings = dict[str, Fields]
"""By kernel, a field of the backend's `Settings`, those of its `TileSizes`; of other kernels the call's own stay."""
Measure = Callable[[Case, Sequence[Settings]], Sequence[float | None]]
Key = tuple[str, int, int, str, str]


def candidates(d: int, height: int = 64) -> dict[str, list[Fields]]:
    """What is tried for each kernel: rows and columns of a tile, tiles under way, columns that terms take at once.

    `height`: rows of a warpgroup's tile on that chip, as `jattn_kernels.gpu.sizes.TileSizes` says.
    """
    wide = d > 128
    alone = height == 128  # one warpgroup where heads are wide, and both have the same keys
    of_queries = {"rows": height if wide and alone else 2 * height, "height": height}
    of_keys = {"rows": height if wide or alone else 2 * height, "height": height}
    forward = [
        {**of_queries, "columns": columns, "steps": steps, "piece": piece}
        for columns, steps in itertools.product((32, 64) if wide else (64, 128), (2, 3, 4))
        for piece in (columns, columns // 2)
    ]
    backward = lambda given: [
        {**given, "columns": columns, "steps": steps, "piece": piece}
        for columns, steps, piece in itertools.product((32, 64), (2, 3, 4), (16, 32))
    ]
    return {"forward": forward, "queries": backward(of_queries), "keys": backward(of_keys)}


def cases() -> list[Case]:
    """What is tuned for, the most important first."""
    b, h = TIMED
    order = itertools.product((16384, 4096), (128, 64, 256), MASKS.values())
    return [Case(ask, b, t, h, d, "fwdbwd") for t, d, ask in order]


def run(
    chosen: Sequence[Case],
    facts: Mapping[str, Any],
    out: Path,
    *,
    table: Path = TABLE,
    command: Sequence[str] = COMMAND,
    stage_limit: float = STAGE_LIMIT,
    limit: float = LIMIT,
) -> int:
    """Time the candidates of every case that time allows; the best go into the table, everything into tune.json."""
    begun = time.perf_counter()
    chip = facts.get("chip")
    if not chip:
        print(f"bench gpu: {facts.get('device')} is not in jattn_kernels.chips: there is no name to tune it under")
        return 2
    height = 128 if GPUS[chip].capability[0] == 10 else 64
    rows = read(table)
    tried: list[dict[str, Any]] = []
    environment = environment_of(out)
    with Pool(at_once(), environment, command) as pool, ThreadPoolExecutor(at_once()) as threads:

        def measure(case: Case, candidates: Sequence[Settings]) -> list[float | None]:
            """Compiled beside each other, timed one after another."""

            def one(settings: Settings) -> dict[str, Any]:
                left = stage_limit - (time.perf_counter() - begun)
                if left < 5:
                    return {"error": "not run: out of time"}
                asked = request(case, "jattn", chip, settings=settings, turn=turn(out))
                return pool.ask(asked, min(limit, left))

            medians: list[float | None] = []
            for settings, answer in zip(candidates, threads.map(one, candidates), strict=True):
                milliseconds, error = answer.get("milliseconds"), answer.get("error")
                median = statistics.median(milliseconds) if milliseconds else None
                medians.append(median)
                tried.append({"name": case.name, "settings": settings, "median": median, "error": error})
                shown = f"{median:9.3f} ms" if median is not None else f"        -  {error}"
                print(f"{case.name:28} {json.dumps(settings):90} {shown}", flush=True)
                write_json(out / "tune.json", {"machine": facts, "complete": False, "tried": tried})
            return medians

        written = 0
        for case in chosen:
            for row in tune(case, measure, height):
                rows[key({"chip": chip, **row})] = {"chip": chip, **row}
                today = datetime.date.today().isoformat()
                write(table, rows, {chip: {"device": facts.get("device"), "date": today, "jax": facts.get("jax")}})
                written += 1
    write_json(out / "tune.json", {"machine": facts, "complete": True, "tried": tried})
    timed = sum(one["median"] is not None for one in tried)
    faster = f"{written} faster than what was taken by more than {100 * MARGIN:.0f} %"
    print(f"{timed} timed, {faster}, {len(rows)} in {table}; {time.perf_counter() - begun:.0f} s")
    return 0 if timed else 1


def tune(case: Case, measure: Measure, height: int = 64) -> Iterator[dict[str, Any]]:
    """A row for each kernel that has faster sizes: forward alone, then each gradient's with the best so far.

    The kernels of the gradients are timed together, with the forward, whose time is taken off: that of both stands in
    the row of either.
    """
    alone = dataclasses.replace(case, direction="fwd")
    settings: Settings = {}
    forward = 0.0
    for kernel, tried in candidates(case.d, height).items():
        asked = alone if kernel == "forward" else case
        own, *medians = measure(asked, [settings, *[{**settings, kernel: sizes} for sizes in tried]])
        timed = [(sizes, time) for sizes, time in zip(tried, medians, strict=True) if time is not None]
        if own is None or not timed:
            return
        sizes, best = min(timed, key=lambda one: one[1])
        if faster := best < (1 - MARGIN) * own:
            settings = {**settings, kernel: sizes}
        if kernel == "forward":
            forward = best if faster else own
        if faster:
            yield _row(case, kernel, sizes, best if kernel == "forward" else max(0.0, best - forward))


def _row(case: Case, direction: str, sizes: Fields, milliseconds: float) -> dict[str, Any]:
    """A row of the table but for the chip; its milliseconds are those of one head."""
    return {
        "d": case.d,
        "t": case.t,
        "mask": case.mask,
        "direction": direction,
        "sizes": sizes,
        "milliseconds": round(milliseconds / (case.b * case.h), 6),
        "pairs": case.pairs,
    }


def key(row: Mapping[str, Any]) -> Key:
    """What a row of the table is found by."""
    return row["chip"], row["d"], row["t"], row["mask"], row["direction"]


def document(table: Path) -> dict[str, Any]:
    """The table: its `entries`, what is `confirmed`, and by chip on which device it was `tuned` and when."""
    content = json.loads(table.read_text()) if table.exists() else []
    return content if isinstance(content, dict) else {"entries": content}


def read(table: Path) -> dict[Key, dict[str, Any]]:
    """The rows of a table by key; none if there is no file."""
    return {key(row): row for row in document(table).get("entries", ())}


def write(table: Path, rows: Mapping[Key, Mapping[str, Any]], tuned: Mapping[str, Any]) -> None:
    """All at once; what else the table says stays."""
    content = document(table)
    entries = [rows[one] for one in sorted(rows)]
    write_json(table, {**content, "entries": entries, "tuned": {**content.get("tuned", {}), **tuned}})
