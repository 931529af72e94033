"""The twin of the fused kernels, whose derivatives of any order are theirs: softmax attention in differentiable JAX."""

from __future__ import annotations

from typing import Any

from jattn._terms.rows import logsumexp
from jattn.backends.contract import Key, Lse, Out, Query, Spec, Value
from jattn.backends.whole_rows import output, rows
from jattn.normalizers import Softmax


def attend(spec: Spec, q: Query, k: Key, v: Value, operands: list[Any]) -> tuple[Out, Lse]:
    """out and lse of softmax attention: the twin of `_primitives.attend`."""

    def finish(terms, _, scores, value, i, j):
        out = output(terms, scores, Softmax()(scores), value, i, j, spec.precision, spec.dtype)
        return out, logsumexp(scores)

    return rows(spec.signature, q, k, v, operands, finish)
