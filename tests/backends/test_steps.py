"""Which part of each array a step works on, and how parts are put back."""

from __future__ import annotations

import dataclasses
import functools

import jax.numpy as jnp
import pytest

from jattn.backends.blockwise import BLOCKWISE
from jattn.backends.blockwise.sizes import Limits
from tests.cases import make
from tests.evaluate import assert_agree, evaluate
from tests.tolerances import assert_close


@functools.lru_cache(maxsize=8)
def _wanted(name):
    return evaluate(make(name, jnp.float64), "reference")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("step", [20, 90])
def test_steps_over_batch_and_heads(step):
    """Small shapes fit one step: with a smaller step the walk over batch elements and heads is what large ones take."""
    backend = dataclasses.replace(BLOCKWISE, settings=Limits(step=step))
    for name in ("everything", "nested"):
        got = evaluate(make(name, jnp.float64), backend, (4, 5))
        assert_agree(got, _wanted(name), "float64")
        assert_close(got.slope, got.slope_from_gradients, 1e-11, "forward mode")
