"""The normaliser that attention takes unless told otherwise."""

from __future__ import annotations

import jax

from jattn._terms import rows, term
from jattn.normalizers._normalizer import Normalizer


@term
class Softmax(Normalizer):
    """exp(score) / sum of exp(score)."""

    is_softmax = True

    def __call__(self, scores: jax.Array) -> jax.Array:
        # not exp(score - lse): where all scores are the least finite number, it is 1 for each
        exponentials, total, _ = rows.exponentials(scores)
        return exponentials / total


def softmax() -> Normalizer:
    """weight[i, j] = exp(score[i, j]) / sum over j' of exp(score[i, j']): the normaliser that `attention` takes unless
    told otherwise.

    >>> import jax.numpy as jnp, jattn
    >>> jattn.normalizers.softmax()(jnp.array([0.0, 0.0, -jnp.inf])).tolist()
    [0.5, 0.5, 0.0]

    Source: Vaswani et al. 2017, equation 1; a tile at a time: Milakov & Gimelshein 2018, algorithm 3.
    """
    return Softmax()
