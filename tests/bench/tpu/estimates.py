"""What the compiler's process might answer, and whom it is asked for."""

import dataclasses

import pytest

from bench.tpu import _contenders
from bench.tpu._cases import Case
from bench.tpu._published import published

CASE = Case("v5e", "full", 4, 16, 16384, 128, "fwdbwd")

needs_tokamax = pytest.mark.skipif(not published(), reason="tokamax is not installed")


def counts(cycles: int, startup: int = 0) -> dict[str, int]:
    return {"cycles": cycles, "startup": startup, "dma_stall": 0, "matrix_stall": 0, "dma_bytes": 0, "products": 1}


def contender(**changes) -> _contenders.Contender:
    settings = [{"n": n} for n in range(4)]
    base = _contenders.Contender("splash", "numpy", lambda case: settings, lambda *_: pytest.fail("compiled"))
    return dataclasses.replace(base, **changes)
