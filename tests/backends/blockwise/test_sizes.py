"""How a call is cut into tiles and steps on a CPU."""

from __future__ import annotations

from typing import Any

import jax
import pytest

import jattn
from jattn import masks


def _plan(q, k=None, device: Any = "h100", **options) -> Any:
    q, k = (jax.ShapeDtypeStruct(x, "bfloat16") for x in (q, k or q))
    return jattn.explain(q, k, k, device=device, implementation="blockwise", **options)


@pytest.mark.parametrize(
    ("shape", "keys", "mask", "tile"),
    [
        ((1, 4096, 8, 64), None, None, (1024, 1024)),
        ((1, 4096, 8, 64), None, masks.causal(), (512, 512)),
        ((1, 4096, 8, 64), (1, 4096, 2, 64), masks.causal(), (128, 512)),
        ((1, 4096, 8, 64), None, masks.window(100), (128, 128)),
        ((8, 1, 32, 64), (8, 8192, 8, 64), None, (1, 8192)),
    ],
)
def test_on_a_cpu_they_are_those_that_were_timed(shape, keys, mask, tile):
    plan = _plan(shape, keys, device=None, mask=mask)
    assert plan.tile == tile and plan.tuned is None
