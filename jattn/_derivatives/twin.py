"""The twin of the fused kernels, whose derivatives of any order are theirs: softmax attention in differentiable JAX."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax

from jattn._derivatives import mapped
from jattn._terms import AnyArray, Terms
from jattn._terms.rows import logsumexp
from jattn.backends.contract import Spec
from jattn.backends.whole_rows import StripSize, output, rows
from jattn.normalizers import Softmax


def attend(spec: Spec, args: Sequence[AnyArray]) -> tuple[jax.Array, jax.Array]:
    """out and lse of softmax attention, after the mapped axes: the twin of `primitives.attend`."""

    def finish(terms: Terms, _: object, scores: jax.Array, value: jax.Array, i: jax.Array, j: jax.Array):
        out = output(terms, scores, Softmax()(scores), value, i, j, spec.precision, spec.dtype)
        return out, logsumexp(scores)

    over = mapped.lengths([x.shape for x in args], spec.axes, len(spec.mapped))[:-1]
    together = math.prod(n for n in over if isinstance(n, int))  # of `jax.export` one may be a symbol
    strip = StripSize(StripSize().scores // max(1, together))

    def one(q: jax.Array, k: jax.Array, v: jax.Array, *operands: AnyArray):
        if spec.backend.twin is not None:
            return spec.backend.twin(dataclasses.replace(spec, mapped=()), q, k, v, operands)
        return rows(spec.signature, q, k, v, operands, finish, strip=strip)

    return mapped.over(one, args, len(spec.mapped))
