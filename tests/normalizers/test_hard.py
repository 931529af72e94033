"""All weight on one key: which of equal ones, and the gradient that is passed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jattn import normalizers


def test_hard_takes_the_first_maximum_and_passes_no_gradient():
    row = jnp.asarray([[1.0, 3.0, 3.0]])
    np.testing.assert_array_equal(normalizers.hard()(row), [[0, 1, 0]])
    np.testing.assert_array_equal(jax.jacobian(normalizers.hard())(row), np.zeros((1, 3, 1, 3)))
    through = normalizers.hard(straight_through=True)
    np.testing.assert_array_equal(through(row), [[0, 1, 0]])
    np.testing.assert_allclose(jax.jacobian(through)(row), jax.jacobian(normalizers.softmax())(row), atol=1e-7)
