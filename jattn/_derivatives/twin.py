"""The twin of the fused kernels, whose derivatives of any order are theirs: softmax attention in differentiable JAX."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from jattn._terms import AnyArray, Terms
from jattn._terms.rows import logsumexp
from jattn.backends.contract import Key, Lse, Out, Query, Spec, Value
from jattn.backends.whole_rows import output, rows
from jattn.normalizers import Softmax


def attend(spec: Spec, q: Query, k: Key, v: Value, operands: Sequence[AnyArray]) -> tuple[Out, Lse]:
    """out and lse of softmax attention: the twin of `primitives.attend`."""
    if spec.backend.twin is not None:
        return spec.backend.twin(spec, q, k, v, operands)

    def finish(terms: Terms, _: object, scores: jax.Array, value: jax.Array, i: jax.Array, j: jax.Array):
        out = output(terms, scores, Softmax()(scores), value, i, j, spec.precision, spec.dtype)
        return out, logsumexp(scores)

    return rows(spec.signature, q, k, v, operands, finish)
