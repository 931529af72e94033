"""The learning rate of the zoo's tasks."""

import jax.numpy as jnp
import numpy as np
import optax

from jattn.zoo._optimizer import adam


def test_the_rate_rises_to_its_peak_and_falls_as_a_square_root():
    optimizer = adam(0.5, rises=4, falls=9)
    state, sizes = optimizer.init(jnp.ones(())), []
    gradient = jnp.float32(100)
    for _ in range(37):  # of a gradient that stays the same, however large, a step is the learning rate
        step, state = optimizer.update(gradient, state)
        sizes.append(-float(jnp.asarray(step)))
    np.testing.assert_allclose([sizes[n] for n in (0, 1, 3, 9, 36)], [0.125, 0.25, 0.5, 0.5, 0.25], rtol=1e-4)
    assert isinstance(optimizer, optax.GradientTransformation)
