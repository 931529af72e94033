"""Which gates are seen to be linear in the weight."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jattn._terms.linear import nonlinear

W = jax.ShapeDtypeStruct((5, 7), jnp.float32)
KEEP = jnp.arange(7) > 3

LINEAR = {
    "scaled": lambda w: -w * 2 / 3,
    "dropped": lambda w: jnp.where(KEEP, w / 2, 0),
    "dropped by zeros": lambda w: jnp.where(KEEP, w, jnp.zeros_like(w)) * 3,
    "dropped by a product": lambda w: w * jnp.where(KEEP, 0, 1),
    "nothing": lambda w: jnp.zeros_like(w),
    "a sum": lambda w: w + jnp.where(KEEP, w, 2 * w),
    "rounded": lambda w: w.astype(jnp.bfloat16).astype(jnp.float32),
    "jitted": jax.jit(lambda w: w * 2),
    "one of two": lambda w: jax.lax.cond(KEEP[0], lambda w: w, lambda w: 2 * w, w),
}
NOT = {
    "add": lambda w: w + 1,
    "sub": lambda w: jax.jit(lambda w: 1 - w)(w),
    "mul": lambda w: w * w,
    "div": lambda w: 1 / w,
    "max": jax.nn.relu,
    "gt": lambda w: jnp.where(w > 0.1, w, 0),
    "select_n": lambda w: jnp.where(KEEP, w, 1),
    "exp": lambda w: w - w + jnp.exp(w),
    "cond": lambda w: jax.lax.cond(KEEP[0], lambda w: w, lambda w: jnp.ones_like(w), w),
    "while": lambda w: jax.lax.fori_loop(0, KEEP.argmax(), lambda n, w: w * 2, w),
    "a result without it": lambda w: jnp.ones_like(w),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear(name):
    assert nonlinear(jax.make_jaxpr(LINEAR[name])(W), 0) is None


@pytest.mark.parametrize("name", NOT)
def test_not_linear_and_why(name):
    reason = nonlinear(jax.make_jaxpr(NOT[name])(W), 0)
    assert reason == name
