"""Fused Pallas kernels for TPU: eligibility, and the kernels of `jattn_kernels.tpu` behind the contract.

Pallas is imported when a call first comes here, and not with the library.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax

from jattn._call.problem import Problem
from jattn._call.targets import Target
from jattn.backends.blockwise import BLOCKWISE
from jattn.backends.contract import Cut, Fused, Gradients, Result, Shaped, Spec
from jattn.backends.pallas_tpu.settings import Settings
from jattn.masks import Mask
from jattn.scores import Additive


def _refuses(problem: Problem, target: Target) -> str | None:
    if not target.tpu:
        return f"runs on TPU, not {target.platform}; JATTN_INTERPRET=1 interprets it, slowly"
    if not problem.normalizer.is_softmax:
        return f"has no kernel for normalizer {type(problem.normalizer).__name__.lower()}"
    if isinstance(problem.score, Additive):
        return "has no kernel for score additive, which is not a product"
    dtypes = {x.dtype.name for x in (problem.query, problem.key, problem.value)}
    if not dtypes <= {"float32", "bfloat16"}:
        return f"takes float32 and bfloat16, not {' and '.join(sorted(dtypes - {'float32', 'bfloat16'}))}"
    from jattn.backends.pallas_tpu.refuses import unfit

    return unfit(problem, target)


def _forward(spec: Spec, q: jax.Array, k: jax.Array, v: jax.Array, operands: list[jax.Array]) -> Result:
    from jattn.backends.pallas_tpu.forward import forward

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
    from jattn.backends.pallas_tpu.backward import backward

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
    from jattn.backends.pallas_tpu.cut import cut

    return cut(spec, q, k, v, operands, mask, known)


PALLAS_TPU = Fused("pallas_tpu", _refuses, _forward, BLOCKWISE.tangent, _backward, _cut, Settings())
