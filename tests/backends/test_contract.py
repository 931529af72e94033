"""The contract of a backend is all that a backend needs: a toy of twenty lines runs the table of cases."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import jattn
from jattn import _terms
from jattn._terms.rows import logsumexp
from jattn.backends.blockwise import BLOCKWISE
from jattn.backends.contract import Fused, Gradients, Result
from jattn.backends.steps import Step
from jattn.normalizers import Softmax
from tests.cases import CASES, make
from tests.evaluate import assert_agree, evaluate
from tests.tolerances import assert_close


def _forward(spec, q, k, v, operands):
    (t, h), (s, g) = q.shape[1:3], k.shape[1:3]
    b = max(
        x.shape[0]
        for x, axes in zip((q, k, v, *operands), ("b", "b", "b", *spec.signature.axes), strict=True)
        if "b" in axes
    )
    step = Step({"b": (0, b), "g": (0, g), "h": (0, h), "t": (0, t), "s": (0, s)}, h // g)

    def head(query, key, value, tiles):
        terms = spec.signature.fill(tiles)
        scores = terms.scores(query, key, *step.positions())
        return terms.weights(Softmax()(scores), *step.positions()) @ value, logsumexp(scores)

    dtype = jnp.promote_types(q.dtype, jnp.float32)
    tiles = [step.operand(x, axes) for x, axes in zip(operands, spec.signature.axes, strict=True)]
    lifted = _terms.lift(head, spec.signature.axes, ("bgr", "bg", "bg"))
    found = lifted(*(x.astype(dtype) for x in (step.rows(q), step.columns(k), step.columns(v))), tiles)
    out, lse = (jnp.moveaxis(x.reshape(b, h, *x.shape[3:]), 1, 2) for x in found)
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


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", CASES)
def test_every_case_on_a_toy(name):
    got = evaluate(make(name, jnp.float64), TOY)
    assert_agree(got, evaluate(make(name, jnp.float64), "reference", forward_mode=False), "float64")
    assert_close(got.slope, got.slope_from_gradients, 1e-11, "forward mode")


def test_the_plan_of_a_toy():
    q = jnp.ones((1, 4, 2, 3))
    plan = jattn.explain(q, q, q, implementation=TOY)
    assert plan.backend == "toy" and plan.tile is None
    assert plan.others["blockwise"] == "was not asked for"


def test_a_toy_that_refuses_says_so():
    q = jnp.ones((1, 4, 2, 3))
    shy = Fused("shy", lambda problem, target: "is shy", _forward, _tangent, _backward)
    with pytest.raises(jattn.UnsupportedError, match="'shy': is shy; blockwise and reference can"):
        jattn.attention(q, q, q, implementation=shy)
