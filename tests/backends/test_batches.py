"""Arrays whose batch axis is shorter than their call's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.backends.batches import folded, spread

X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4)), jnp.float32)


@pytest.mark.parametrize("b", [2, 4, 6])
def test_element_b_uses_entry_b_modulo_the_length(b):
    got = spread(X, b)
    np.testing.assert_array_equal(got, np.asarray(X)[np.arange(b) % 2])
    assert (got is X) == (b == 2)


@pytest.mark.parametrize("b", [2, 4, 6])
def test_gradients_of_elements_that_use_an_entry_are_added(b):
    cotangent = jnp.cos(jnp.arange(b * 12, dtype=jnp.float32)).reshape(b, 3, 4)
    (wanted,) = jax.vjp(lambda x: spread(x, b), X)[1](cotangent)
    np.testing.assert_allclose(folded(cotangent, X), wanted, rtol=1e-6, atol=1e-6)


def test_numbers_of_few_bits_are_added_in_float32():
    """In bfloat16 256 + 1 is 256."""
    parts = jnp.array([[256.0]] + [[1.0]] * 64, jnp.bfloat16)
    got = folded(parts, jnp.zeros((1, 1), jnp.bfloat16))
    assert got.dtype == jnp.bfloat16 and float(got[0, 0]) == 320
    assert folded(parts.astype(jnp.float32), jnp.zeros((65, 1), jnp.bfloat16)).dtype == jnp.bfloat16
