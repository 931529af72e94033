"""Hierarchical attention over embedded words, and a linear layer on what comes out.

The sentences of a page stand in no order that matters, so by default no GRU reads them, and to find the one that
matters is left to the pooling.  With `--sentence-gru`, as in the paper, the gates of the GRUs can pass over the other
sentences and hold what the critic said to the end of the page: the mean then does as well as attention.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jattn.nn import HierarchicalAttention
from jattn.zoo.documents.data import PADDING, Array


@dataclasses.dataclass(frozen=True)
class Sizes:
    """embedding: of a word.  hidden: of each GRU."""

    embedding: int = 32
    hidden: int = 24


class Reader(nnx.Module):
    embed: nnx.Embed
    read: HierarchicalAttention
    out: nnx.Linear

    def __init__(
        self,
        words: int,
        pooling: Literal["attention", "mean"],
        sentence_gru: bool,
        sizes: Sizes,
        implementation: str | None,
        rngs: nnx.Rngs,
    ):
        self.embed = nnx.Embed(words, sizes.embedding, rngs=rngs)
        self.read = HierarchicalAttention(
            sizes.embedding, sizes.hidden, sentence_gru=sentence_gru, summary=pooling, implementation=implementation,
            rngs=rngs,
        )  # fmt: skip
        self.out = nnx.Linear(2 * sizes.hidden, 1, rngs=rngs)

    def __call__(self, words: Array) -> jax.Array:
        """words [b, n, m] -> logit [b] of praise."""
        return self.out(self.read(self.embed(jnp.asarray(words)), words != PADDING))[..., 0]

    def weights(self, words: Array) -> tuple[jax.Array, jax.Array]:
        """Of each word in its sentence [b, n, m] and of each sentence [b, n]."""
        return self.read.weights(self.embed(jnp.asarray(words)), words != PADDING)
