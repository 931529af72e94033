"""Who runs a call: one package for each backend, of its public name."""

from __future__ import annotations

from jattn.backends.blockwise import BLOCKWISE
from jattn.backends.contract import Backend
from jattn.backends.cudnn import CUDNN
from jattn.backends.pallas_gpu import PALLAS_GPU
from jattn.backends.pallas_tpu import PALLAS_TPU
from jattn.backends.reference import REFERENCE

BACKENDS: tuple[Backend, ...] = (PALLAS_TPU, PALLAS_GPU, CUDNN, BLOCKWISE, REFERENCE)
"""In order of preference.  `dispatch.choose` passes over those that need a run to confirm them and have none."""
