"""The figure that a run came to, beside its checkpoints: `python -m jattn.zoo` lists it, the benchmark collects it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

_NAME = "figure.json"
RECORD = Path(__file__).parent / "figures.json"


class Figure(NamedTuple):
    """shown: value as the task prints it.  baseline: its name and value, likewise.  seconds: from the first step on."""

    metric: str
    value: float
    shown: str
    baseline: tuple[str, str] | None
    step: int
    seconds: float

    def __str__(self) -> str:
        beside = "" if self.baseline is None else f" ({self.baseline[0]} {self.baseline[1]})"
        return f"{self.metric} {self.shown}{beside} at step {self.step}, {self.seconds:.0f} s"


def save(out: Path, figure: Figure) -> None:
    (out / _NAME).write_text(json.dumps(figure._asdict(), indent=1) + "\n")


def load(out: Path) -> Figure | None:
    """The figure of the run under `out`, if it came to one."""
    try:
        return from_json(json.loads((out / _NAME).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def from_json(fields: dict[str, Any]) -> Figure:
    baseline = fields["baseline"]
    return Figure(**{**fields, "baseline": None if baseline is None else tuple(baseline)})


def recorded(record: Path = RECORD) -> dict[str, dict[str, Figure]]:
    """The figures that `python -m bench zoo` recorded: task -> variant -> figure."""
    tasks = json.loads(record.read_text())
    return {task: {label: from_json(fields) for label, fields in variants.items()} for task, variants in tasks.items()}
