"""What is checked on a GPU: every case is a call, with gradients of all that has one."""

import jax
import jax.numpy as jnp
import pytest

from bench.gpu import _check
from bench.gpu._check_cases import CHECKS


def test_about_forty_cases_with_names_of_their_own():
    names = [check.name for check in CHECKS]
    assert 38 <= len(names) <= 52
    assert len(set(names)) == len(names)
    assert {check.dtype for check in CHECKS} == {"bfloat16", "float16", "float32"}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_every_case_is_a_call_with_gradients(check):
    """What is asked traces, and every array of floating-point numbers has a gradient, but those of 8 bits."""
    inputs, cotangents = _check.draw(check)
    got = jax.eval_shape(lambda *x: _check.everything(check, "reference", *x), inputs, cotangents)
    learned = [name for name, x in inputs.items() if jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize > 1]
    wanted = {f"d{name}" for name in learned}
    assert set(got) == {"out", *(["lse"] if check.lse else []), *wanted}
    assert got["out"].shape == (check.b, check.t, check.h, check.e)
