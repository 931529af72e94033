"""A backend by the contract alone, its forward pass twenty lines: the softmax of whole heads, differentiated by JAX."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jattn import _terms
from jattn._terms.rows import logsumexp
from jattn.backends.blockwise import BLOCKWISE
from jattn.backends.contract import Fused, Gradients, Result
from jattn.backends.steps import Step
from jattn.normalizers import Softmax


def _forward(spec, q, k, v, operands):
    (t, h), (s, g) = q.shape[1:3], k.shape[1:3]
    axes = ("b", "b", "b", *spec.signature.axes)
    b = max(x.shape[0] for x, a in zip((q, k, v, *operands), axes, strict=True) if "b" in a)
    spread = lambda x, a: jnp.tile(x, (b // x.shape[0], *[1] * (x.ndim - 1))) if "b" in a else x
    q, k, v, *operands = (spread(x, a) for x, a in zip((q, k, v, *operands), axes, strict=True))
    step = Step({"b": (0, b), "g": (0, g), "h": (0, h), "t": (0, t), "s": (0, s)}, h // g)

    def head(query, key, value, tiles):
        terms = spec.signature.fill(tiles)
        scores = terms.scores(query, key, *step.positions())
        return terms.weights(Softmax()(scores), *step.positions()) @ value, logsumexp(scores)

    dtype = jnp.promote_types(q.dtype, jnp.float32)
    tiles = [step.operand(x, axes) for x, axes in zip(operands, spec.signature.axes, strict=True)]
    lifted = _terms.lift(head, spec.signature.axes, ("bgr", "bg", "bg"))
    got = lifted(*(x.astype(dtype) for x in (step.rows(q), step.columns(k), step.columns(v))), tiles)
    out, lse = (jnp.moveaxis(x.reshape(b, h, *x.shape[3:]), 1, 2) for x in got)
    return Result(out.astype(spec.dtype), lse, jnp.zeros_like(lse))


def _as_function(spec, operands, active):
    """(out, lse) as a function of q, k, v and the operands that are active."""

    def fn(q, k, v, *moving):
        rest = iter(moving)
        return _forward(spec, q, k, v, [next(rest) if y else x for x, y in zip(operands, active, strict=True)])[:2]

    return fn


def _tangent(spec, q, k, v, operands, result, tangents):
    active = [x is not None for x in tangents.operands]
    moving = [x for x, y in zip(operands, active, strict=True) if y]
    along = (*tangents[:3], *(x for x in tangents.operands if x is not None))
    return jax.jvp(_as_function(spec, operands, active), (q, k, v, *moving), along)[1]


def _backward(spec, q, k, v, operands, result, dout, dlse, active):
    moving = [x for x, y in zip(operands, active, strict=True) if y]
    _, pull = jax.vjp(_as_function(spec, operands, active), q, k, v, *moving)
    dq, dk, dv, *rest = pull((dout, dlse))
    rest = iter(rest)
    return Gradients(dq, dk, dv, [next(rest) if y else None for y in active])


TOY = Fused("toy", BLOCKWISE.refuses, _forward, _tangent, _backward)
