"""Fused Pallas kernels for NVIDIA's GPUs, by Mosaic: the kernels of `jattn_kernels.gpu` behind the contract.

Pallas is imported when a call first comes here, and not with the library.
"""

from __future__ import annotations

from jattn.backends.blockwise import BLOCKWISE
from jattn.backends.contract import Fused, InPages
from jattn.backends.deferred import deferred
from jattn.backends.pallas_gpu.refuses import unfit
from jattn.backends.pallas_gpu.settings import Settings

UNTRIED = "compiled and simulated, not yet run on this chip"


@deferred
def _forward():
    from jattn.backends.pallas_gpu.forward import forward

    return forward


@deferred
def _takes_pages():
    from jattn.backends.pallas_gpu.forward import takes_pages

    return takes_pages


@deferred
def _forward_in_pages():
    from jattn.backends.pallas_gpu.forward import forward_in_pages

    return forward_in_pages


@deferred
def _backward():
    from jattn.backends.pallas_gpu.backward import backward

    return backward


@deferred
def _cut():
    from jattn.backends.pallas_gpu.cut import cut

    return cut


PALLAS_GPU = Fused(
    "pallas_gpu", unfit, _forward, BLOCKWISE.tangent, _backward, _cut, Settings(), untried=UNTRIED, calls_back=True,
    out_as_query=True, in_pages=InPages(_takes_pages, _forward_in_pages),
)  # fmt: skip
