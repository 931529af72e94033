"""The contract of a backend is all that a backend needs: a toy of twenty lines runs the table of cases."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import pytest

import jattn
from tests.cases import CASES, make
from tests.evaluate import assert_agree, evaluate
from tests.tolerances import assert_close
from tests.toy import TOY


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
    shy = dataclasses.replace(TOY, name="shy", refuses=lambda problem, target: "is shy")
    with pytest.raises(jattn.UnsupportedError, match="'shy': is shy; blockwise and reference can"):
        jattn.attention(q, q, q, implementation=shy)
