"""The language model on one device, on a mesh of eight, and on another mesh that goes on from its checkpoint.

A program of its own, since a process has as many devices as it had when JAX began.  It prints a line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)  # collectives from there are wrong now and then

import jax
import numpy as np
from flax import nnx

from jattn.zoo._train import train
from jattn.zoo.text.task import text
from tests.zoo.test_text import CORPUS, TINY

ONE: dict[str, int] | None = None
RUNS = {"one": [(ONE, 2), (ONE, 4)], "many": [({"data": 2, "sequence": 4}, 2), ({"model": 2, "sequence": 2}, 4)]}
"""Of each run the meshes, and the steps up to which it is trained on them."""


def run(out: Path, mesh: dict[str, int] | None, steps: int) -> tuple[float, list[Any]]:
    """The evaluation after so many steps, and the parameters."""
    kept: list[Any] = []
    keep = lambda model: kept.extend(map(np.asarray, jax.tree.leaves(nnx.state(model)))) or {}
    task = text(16, None, "rotary", 0, None, TINY, CORPUS, sequences=4, mesh=mesh)
    return train(task._replace(pictures=keep, written=None), steps, out), kept


def main(out: Path) -> None:
    jax.config.update("jax_disable_most_optimizations", True)
    found = {name: [run(out / name, *part) for part in parts] for name, parts in RUNS.items()}
    pairs = list(zip(found["one"], found["many"], strict=True))
    losses = [abs(x[0] - y[0]) for x, y in pairs]
    params = [max(float(abs(a - b).max()) for a, b in zip(x[1], y[1], strict=True)) for x, y in pairs]
    print(json.dumps({"losses": losses, "params": params}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
