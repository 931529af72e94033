"""Fused Pallas kernels for NVIDIA's GPUs, by Mosaic: eligibility.

Pallas is imported when a call first comes here, and not with the library.
"""

from __future__ import annotations

from jattn._call.problem import Problem
from jattn._call.targets import Target
from jattn.backends.contract import Backend
from jattn.backends.pallas_gpu.refuses import unfit

UNTRIED = "compiled and simulated, not yet run on this chip"


def _refuses(problem: Problem, target: Target) -> str | None:
    return unfit(problem, target) or "has no kernel in this version yet"


PALLAS_GPU = Backend("pallas_gpu", _refuses, untried=UNTRIED)
