"""`python -m bench gpu --tune`: the best tile sizes and stages of jattn's GPU kernels, timed on the GPU that is here.

The best go into the table that the kernels read, with the device and the date.  Each case is written as it is found.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jattn_kernels import tables

from bench._paths import ROOT
from bench._report import write_json
from bench.gpu._cases import TIMED, Case
from bench.gpu._children import COMMAND, Worker, cache_environment
from bench.gpu._terms import attended_pairs
from bench.gpu._time import request

TABLE = ROOT / "kernels" / "jattn_kernels" / "tables" / "gpu.json"
LIMIT = 45.0  # seconds of one candidate, its compilation included
STAGE_LIMIT = 1200.0
MASKS = {"causal": "causal", "full": "plain", "window": "window"}
"""By mask, as the tables name it, the ask of `_terms.ASKS`."""

Sizes = dict[str, Any]
Settings = dict[str, Sizes]
"""By pass, the fields of the kernels' `Sizes`."""
Measure = Callable[[Case, Settings], float | None]
Key = tuple[str, int, int, str, str]


def backend_with(settings: Mapping[str, Sizes]) -> Any:
    """The backend with sizes in the place of the tuned ones: the one place that knows how the library takes them."""
    from jattn.backends.pallas_gpu import PALLAS_GPU  # pyright: ignore[reportMissingImports]
    from jattn.backends.pallas_gpu.settings import Settings as Given  # pyright: ignore[reportMissingImports]
    from jattn_kernels.gpu.sizes import Sizes as Tiles  # pyright: ignore[reportMissingImports]

    return dataclasses.replace(PALLAS_GPU, settings=Given(**{name: Tiles(**one) for name, one in settings.items()}))


def candidates(d: int) -> dict[str, list[Sizes]]:
    """What is tried for each pass: rows and columns of a tile, tiles under way, columns that terms take at once."""
    columns = (64,) if d > 128 else (64, 128)
    forward = [
        {"rows": 128, "columns": column, "steps": steps, "piece": piece}
        for column, steps in itertools.product(columns, (2, 3, 4))
        for piece in (column, column // 2)
    ]
    backward = [
        {"rows": rows, "columns": column, "steps": steps, "piece": piece}
        for rows, column, steps, piece in itertools.product((64, 128), (32, 64), (2, 3), (16, 32))
    ]
    return {"forward": forward, "backward": backward}


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
    rows = read(table)
    tried: list[dict[str, Any]] = []
    environment = {**cache_environment(out), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    with Worker(environment, command) as worker:

        def measure(case: Case, settings: Settings) -> float | None:
            left = stage_limit - (time.perf_counter() - begun)
            if left < 5:
                return None
            answer = worker.ask(request(case, "jattn", chip, settings=settings), min(limit, left))
            found = answer.get("milliseconds")
            median = statistics.median(found) if found else None
            tried.append({"name": case.name, "settings": settings, "median": median, "error": answer.get("error")})
            shown = f"{median:9.3f} ms" if median is not None else f"        -  {answer.get('error')}"
            print(f"{case.name:28} {json.dumps(settings):90} {shown}", flush=True)
            write_json(out / "tune.json", {"machine": facts, "complete": False, "tried": tried})
            return median

        found = 0
        for case in chosen:
            for row in tune(case, measure):
                dated = {"device": facts.get("device"), "date": datetime.date.today().isoformat()}
                rows[key(chip, case, row["direction"])] = {"chip": chip, **row, **dated}
                write(table, rows)
                found += 1
    write_json(out / "tune.json", {"machine": facts, "complete": True, "tried": tried})
    print(f"{found} rows found, {len(rows)} in {table}; {time.perf_counter() - begun:.0f} s")
    return 0 if found else 1


def tune(case: Case, measure: Measure) -> Iterator[dict[str, Any]]:
    """A row for each pass that any candidate could run: forward alone, then the gradients with the best forward.

    A backward pass is timed with its forward, whose time is taken off.
    """
    forward = dataclasses.replace(case, direction="fwd")
    tried = candidates(case.d)
    best = _best(tried["forward"], lambda sizes: measure(forward, {"forward": sizes}))
    if best is None:
        return
    yield _row(case, "forward", *best)
    sizes, alone = best
    both = _best(tried["backward"], lambda backward: measure(case, {"forward": sizes, "backward": backward}))
    if both is not None:
        yield _row(case, "backward", both[0], max(0.0, both[1] - alone))


def _best(tried: Sequence[Sizes], measure: Callable[[Sizes], float | None]) -> tuple[Sizes, float] | None:
    found = [(sizes, one) for sizes in tried if (one := measure(sizes)) is not None]
    return min(found, key=lambda one: one[1], default=None)


def _row(case: Case, direction: str, sizes: Sizes, milliseconds: float) -> dict[str, Any]:
    """A row of the table but for the chip; its milliseconds are those of one head."""
    return {
        "d": case.d,
        "t": case.t,
        "mask": case.mask,
        "direction": direction,
        "sizes": sizes,
        "milliseconds": round(milliseconds / (case.b * case.h), 6),
        "pairs": attended_pairs(case.mask, case.t),
    }


def key(chip: str, case: Case, direction: str) -> Key:
    """What a row of the table is found by."""
    assert direction in tables.PASSES
    return chip, case.d, case.t, case.mask, direction


def read(table: Path) -> dict[Key, dict[str, Any]]:
    """The rows of a table by key; none if there is no file."""
    rows = json.loads(table.read_text()) if table.exists() else []
    return {(row["chip"], row["d"], row["t"], row["mask"], row["direction"]): row for row in rows}


def write(table: Path, rows: Mapping[Key, Mapping[str, Any]]) -> None:
    """All at once, a row a line."""
    draft = table.with_suffix(".draft")
    draft.write_text("[\n" + ",\n".join(json.dumps(rows[one]) for one in sorted(rows)) + "\n]\n")
    draft.replace(table)
