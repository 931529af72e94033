"""Names of backends that are not there yet, so that a caller reads so and not that the name is wrong."""

from __future__ import annotations

from jattn._call.targets import Target
from jattn.backends.contract import Backend


def _planned(name: str, what: str) -> Backend:
    def refuses(problem: object, target: Target) -> str:
        del problem, target
        return f"this release of jattn has no {what} yet"

    return Backend(name, refuses)


PLANNED = (_planned("pallas_triton", "Triton kernel"), _planned("cudnn", "cuDNN binding"))
