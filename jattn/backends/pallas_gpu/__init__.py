"""Fused Pallas kernels for NVIDIA's GPUs, by Mosaic: the kernels of `jattn_kernels.gpu` behind the contract.

Pallas is imported when a call first comes here, and not with the library.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax

from jattn.backends.blockwise import BLOCKWISE
from jattn.backends.contract import Cut, Fused, Gradients, Result, Shaped, Spec
from jattn.backends.pallas_gpu.refuses import unfit
from jattn.backends.pallas_gpu.settings import Settings
from jattn.masks import Mask

UNTRIED = "compiled and simulated, not yet run on this chip"


def _forward(spec: Spec, q: jax.Array, k: jax.Array, v: jax.Array, operands: list[jax.Array]) -> Result:
    from jattn.backends.pallas_gpu.forward import forward

    return forward(spec, q, k, v, operands)


def _backward(
    spec: Spec,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    operands: list[jax.Array],
    result: Result,
    dout: jax.Array,
    dlse: jax.Array,
    active: Sequence[bool],
) -> Gradients:
    from jattn.backends.pallas_gpu.backward import backward

    return backward(spec, q, k, v, operands, result, dout, dlse, active)


def _cut(
    spec: Spec,
    q: Shaped,
    k: Shaped,
    v: Shaped,
    operands: Sequence[Shaped],
    mask: Mask | None,
    known: bool,
) -> Cut:
    from jattn.backends.pallas_gpu.cut import cut

    return cut(spec, q, k, v, operands, mask, known)


PALLAS_GPU = Fused(
    "pallas_gpu", unfit, _forward, BLOCKWISE.tangent, _backward, _cut, Settings(), untried=UNTRIED, calls_back=True
)
