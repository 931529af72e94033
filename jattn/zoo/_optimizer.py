"""What the tasks learn with."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax


def adam(peak: float, rises: int = 100, falls: int = 300) -> optax.GradientTransformation:
    """Adam on gradients clipped to a norm of 1; the rate does not depend on the length of the run, so any can go on.

    Args:
      peak: the highest learning rate.
      rises: steps in which it is reached, in a line.
      falls: the step after which it falls as 1 / sqrt(step).
    """

    def learning_rate(step: Any) -> jax.Array:
        return peak * jnp.minimum((step + 1) / rises, jnp.sqrt(falls / jnp.maximum(step, falls)))

    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(learning_rate))
