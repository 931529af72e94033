"""Who runs a call: one package for each backend, of its public name."""

from __future__ import annotations

from jattn.backends.blockwise import BLOCKWISE
from jattn.backends.contract import Backend
from jattn.backends.pallas_tpu import PALLAS_TPU
from jattn.backends.planned import PLANNED
from jattn.backends.reference import REFERENCE

BACKENDS: tuple[Backend, ...] = (PALLAS_TPU, *PLANNED, BLOCKWISE, REFERENCE)
"""In order of preference."""
