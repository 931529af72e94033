"""What a profile shows of a call."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import jattn
from jattn import normalizers

Q = jnp.ones((1, 4, 2, 3))


@pytest.mark.parametrize("implementation", ["blockwise", "reference"])
def test_profiles_name_the_backend_forward_and_backward(implementation):
    loss = lambda q: jnp.sum(jattn.attention(q, q, q, implementation=implementation))
    compiled = jax.jit(jax.grad(loss)).lower(Q).compile().as_text()
    names = [line for line in str(compiled).splitlines() if "op_name=" in line]
    scope = f"jattn.attention/{implementation}"
    assert any(scope in x and "transpose" in x for x in names)
    assert any(scope in x and "transpose" not in x for x in names)


def test_profiles_name_what_has_no_kernel_too():
    lowered = jax.jit(lambda q: jattn.attention(q, q, q, normalizer=normalizers.sparsemax())).lower(Q)
    assert "jattn.attention/blockwise" in str(lowered.compile().as_text())
