"""What both directions of a call share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jattn_kernels import chips
from jattn_kernels.tiles.work import Direction, Frame, Work
from jattn_kernels.tpu.layout import OperandLayout
from jax.lax import Precision

from jattn._terms import AnyArray
from jattn._terms.moved import moved
from jattn.backends.contract import Spec
from jattn.backends.pallas.work import work_of
from jattn.backends.pallas_tpu.sizes import tile_sizes
from jattn.backends.pallas_tpu.terms import TpuTerms


class Call:
    """Sizes, work and terms of one direction of a call."""

    frame: Frame
    terms: TpuTerms
    work: Work
    options: dict[str, Any]
    layouts: tuple[OperandLayout, ...]

    def __init__(
        self, spec: Spec, q: jax.Array, k: jax.Array, v: jax.Array, operands: Sequence[AnyArray], direction: Direction
    ):
        self.frame = Frame(q.shape[1], k.shape[1], tile_sizes(spec, q, k, v, direction)[0])
        self.terms = TpuTerms(spec, self.frame, direction)
        self.work = work_of(moved(spec.terms(operands)), self.frame, direction, spec.backend.settings.lists)
        chip = chips.tpu(spec.target.chip)
        self.options = {
            "precision": Precision.DEFAULT if spec.precision == Precision.DEFAULT else Precision.HIGHEST,
            "memory": None if chip is None else chip.granted,
            "interpret": spec.target.interpret,
        }
        self.layouts = self.terms.layouts(operands)
