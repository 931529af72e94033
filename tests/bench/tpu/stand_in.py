"""A stand-in for the compiler, and what else of a machine the command lines ask for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bench.tpu import command
from bench.tpu._cases import Case, Setting
from bench.tpu._compile import Compiler
from tests.bench.tpu.estimates import counts


class StandIn(Compiler):
    """A compiler that answers at once: splash's time depends on its tiles; jattn takes 1.2 ms."""

    def count(self, case: Case, contender: str, setting: Setting) -> dict[str, Any]:
        forward, backward = setting.get("forward", {}), setting.get("backward", {})
        if setting.get("tiles", [0])[0] == 2048 or forward.get("query") == 2048:
            return {"error": "RuntimeError: too large"}
        if forward:  # the best are those with the other scheduler forward, of the smallest step
            both = counts(1000 if "scheduler" in forward else 2000), counts(backward["step"])
            kernels = dict(zip((f"{contender}_forward.1", f"{contender}_backward.1"), both, strict=True))
        else:
            size = sum(setting.get("tiles", [1200]))
            kernels = {f"{contender}_fwd_.1": counts(1500 * size), f"{contender}_backward.1": counts(3000000 - size)}
        return {"kernels": kernels, "between_bytes": 0}


def none_missing(modules: Iterable[str]) -> list[str]:
    """As `bench._cli.missing`, where everything is installed."""
    return []


def main(arguments: Sequence[str]) -> int:
    """`python -m bench tpu` where everything is installed and compiled at once."""
    return command.main(arguments, compiler=StandIn, missing=none_missing, versions=lambda package: f"{package}==1")
