"""Fused Pallas kernels for TPU: eligibility, and the kernels of `jattn_kernels.tpu` behind the contract.

Pallas is imported when a call first comes here, and not with the library.
"""

from __future__ import annotations

from jattn.backends.contract import Fused, InPages
from jattn.backends.deferred import deferred
from jattn.backends.pallas_tpu.refuses import unfit
from jattn.backends.pallas_tpu.settings import Settings


@deferred
def _forward():
    from jattn.backends.pallas_tpu.forward import forward

    return forward


@deferred
def _tangent():
    from jattn.backends.pallas_tpu.tangent import tangent

    return tangent


@deferred
def _backward():
    from jattn.backends.pallas_tpu.backward import backward

    return backward


@deferred
def _cut():
    from jattn.backends.pallas_tpu.cut import cut

    return cut


@deferred
def _takes_pages():
    from jattn.backends.pallas_tpu.forward import takes_pages

    return takes_pages


@deferred
def _forward_in_pages():
    from jattn.backends.pallas_tpu.forward import forward_in_pages

    return forward_in_pages


PALLAS_TPU = Fused(
    "pallas_tpu",
    unfit,
    _forward,
    _tangent,
    _backward,
    _cut,
    Settings(),
    in_pages=InPages(_takes_pages, _forward_in_pages),
)
