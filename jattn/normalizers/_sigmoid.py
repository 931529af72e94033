"""A weight for each pair by itself."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike

from jattn._terms import FieldValue, number, rows, term
from jattn.normalizers._normalizer import Normalizer


@term
class Sigmoid(Normalizer):
    """sigmoid(score + bias)."""

    elementwise = True

    bias: FieldValue

    def __call__(self, scores: jax.Array) -> jax.Array:
        # +inf would pass for a weight of 1, though it comes from an overflow, here as in a softmax
        return jax.nn.sigmoid(scores + self.bias) + rows.flaw(jnp.maximum(scores, 0))


def sigmoid(bias: ArrayLike = 0.0) -> Normalizer:
    """weight = 1 / (1 + exp(-(score + bias))), elementwise: weights of a row do not sum to 1.

    Args:
      bias: a number, or a scalar array that gets a gradient.  The paper takes -log(s), with s the number of keys.

    Raises:
      TypeError, ValueError: `bias` is not a number, or an array with axes.

    >>> import jax.numpy as jnp, jattn
    >>> jattn.normalizers.sigmoid()(jnp.array([0.0, -jnp.inf])).tolist()
    [0.5, 0.0]

    Source: Ramapuram et al. 2024, "Theory, Analysis, and Best Practices for Sigmoid Self-Attention".
    """
    return Sigmoid(number(bias, "bias"))
