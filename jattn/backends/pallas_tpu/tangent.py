"""Tangents: the tiled twin's."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jattn.backends.blockwise import BLOCKWISE
from jattn.backends.contract import Key, Lse, Out, Query, Result, Spec, Tangents, Value
from jattn.backends.pallas.terms import scales_scores


def tangent(
    spec: Spec, q: Query, k: Key, v: Value, operands: list[jax.Array], result: Result, tangents: Tangents
) -> tuple[Out, Lse]:
    """See `jattn.backends.contract.Fused.tangent`.

    The twin does not round the scaled query, so where the kernel does, its lse is not that of the twin's scores.
    """
    if q.dtype != jnp.float32 and not scales_scores(spec):
        result = BLOCKWISE.forward(spec, q, k, v, operands)
    return BLOCKWISE.tangent(spec, q, k, v, operands, result, tangents)
