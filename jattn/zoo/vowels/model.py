"""An LSTM over the steps of an utterance, its states summed up in one vector, and a linear layer on that."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jattn.nn import RecurrentAttention
from jattn.zoo.vowels.data import COEFFICIENTS, SPEAKERS, Array


@dataclasses.dataclass(frozen=True)
class Sizes:
    """hidden: of the LSTM."""

    hidden: int = 64


class Classifier(nnx.Module):
    reader: RecurrentAttention
    out: nnx.Linear

    def __init__(
        self, summary: Literal["attention", "mean", "last"], sizes: Sizes, implementation: str | None, rngs: nnx.Rngs
    ):
        self.reader = RecurrentAttention(
            COEFFICIENTS, sizes.hidden, summary=summary, implementation=implementation, rngs=rngs
        )
        self.out = nnx.Linear(sizes.hidden, SPEAKERS, rngs=rngs)

    def __call__(self, series: Array, length: Array) -> jax.Array:
        """series [b, s, 12], length [b] -> logits [b, 9]."""
        return self.out(self.reader(jnp.asarray(series), _mask(series, length)))

    def weights(self, series: Array, length: Array) -> jax.Array:
        """The weight [b, s] of each step."""
        return self.reader.weights(jnp.asarray(series), _mask(series, length))


def _mask(series: Array, length: Array) -> jax.Array:
    return jnp.arange(series.shape[1]) < jnp.asarray(length)[:, None]
