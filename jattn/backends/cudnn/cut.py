"""How a call is cut, and an estimate of its time, for `jattn.explain`."""

from __future__ import annotations

from collections.abc import Sequence

from jattn.backends.contract import Cut, Shaped, Spec
from jattn.backends.pallas_gpu.cut import estimate
from jattn.masks import Mask

_TILE = (128, 128)  # of cuDNN's own nothing is known: blocks are counted and estimated in those of its peers


def cut(spec: Spec, q: Shaped, k: Shaped, v: Shaped, operands: Sequence[Shaped], mask: Mask | None, known: bool) -> Cut:
    """How the call is cut, forward; blocks are counted where the mask is `known`."""
    return estimate(spec, q, k, v, operands, mask, known, _TILE, "cuDNN's own; counted in these")
