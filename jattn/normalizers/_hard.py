"""All weight on the key with the greatest score."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jattn._terms import rows, term
from jattn.normalizers._normalizer import Normalizer
from jattn.normalizers._softmax import Softmax


@term
class Hard(Normalizer):
    """One-hot of the first maximum."""

    straight_through: bool

    def __call__(self, scores: jax.Array) -> jax.Array:
        top = jax.lax.stop_gradient(rows.row_max(scores))
        if 0 in scores.shape:  # a row without keys has no maximum, and `argmax` would raise
            return scores
        first = jnp.argmax(scores, axis=-1, keepdims=True) == jax.lax.broadcasted_iota(
            int, scores.shape, scores.ndim - 1
        )
        empty = jnp.isneginf(top)
        chosen = jnp.where(empty, 0, first.astype(scores.dtype) + rows.flaw(jnp.where(empty, 0, top)))
        if not self.straight_through:
            return chosen
        soft = Softmax()(scores)
        return chosen + (soft - jax.lax.stop_gradient(soft))


def hard(straight_through: bool = False) -> Normalizer:
    """weight[i, j] = 1 for the first j with the greatest score, 0 for all others: hard attention.

    Args:
      straight_through: the gradient with respect to the scores is that of softmax; else it is 0.

    >>> import jax.numpy as jnp, jattn
    >>> jattn.normalizers.hard()(jnp.array([1.0, 3.0, 3.0])).tolist()
    [0.0, 1.0, 0.0]

    Source: Xu et al. 2015, section 4.1; straight through: Bengio et al. 2013.
    """
    return Hard(bool(straight_through))
