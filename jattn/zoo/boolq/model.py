"""Bags of n-grams, and beside them a question that attends to its passage.

What the answers to one topic have in common, and those to one way of asking, the bags learn; how passage and question
fit, the attention.  The vectors of words are not trained: with so few questions they would only learn these by heart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jattn
from jattn.nn import AttentionPooling, MultiHeadAttention
from jattn.zoo.boolq.data import FLAGS, Array, Batch, Lexicon

PACE = 20.0  # how much faster than the others the weights of n-grams learn: each is seen seldom


@dataclasses.dataclass(frozen=True)
class Sizes:
    """hidden: width of what attends.  heads: of the attention.  dropout: before, between and after its layers."""

    hidden: int = 32
    heads: int = 4
    dropout: float = 0.5


class Answerer(nnx.Module):
    """The logit of yes: that of the bags, and with attention that of the question having read the passage."""

    question: Bag
    passage: Bag
    rarity: nnx.Param[jax.Array]  # counted before training, and not learnt
    shared: nnx.Linear
    reader: Reader | None

    def __init__(self, lexicon: Lexicon, attention: str, sizes: Sizes, implementation: str | None, rngs: nnx.Rngs):
        self.question = Bag(lexicon.question_grams.rarity)
        self.passage = Bag(lexicon.passage_grams.rarity)
        self.rarity = nnx.Param(jnp.asarray(lexicon.words.rarity))
        self.shared = nnx.Linear(2 * FLAGS + 1, 1, kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.reader = nnx.data(Reader(lexicon, sizes, implementation, rngs) if attention == "cross" else None)

    def __call__(self, batch: Batch, rngs: nnx.Rngs | None = None) -> tuple[jax.Array, jax.Array]:
        """[b] twice: of all, and of what was read alone.  rngs: of dropout; None for none."""
        bags = self.question(batch.question_grams) + self.passage(batch.passage_grams) + self._overlap(batch)
        read = jnp.zeros_like(bags) if self.reader is None else self.reader(batch, rngs)
        return bags + read, read

    def _overlap(self, batch: Batch) -> jax.Array:
        """Of how much of the question the passage has, as far as it is rare, of how much of the passage the question
        has, and of the passage's length."""
        rarity = jax.lax.stop_gradient(self.rarity[...])
        long = jnp.mean(batch.passage > 0, axis=1, keepdims=True)

        def share(words: Array, flags: Array) -> jax.Array:
            weight = rarity[words]
            return jnp.einsum("bs,bsf->bf", weight, flags) / (jnp.sum(weight, axis=1, keepdims=True) + 1e-6)

        parts = share(batch.question, batch.question_flags), share(batch.passage, batch.passage_flags), long
        return PACE * self.shared(jnp.concatenate(parts, axis=-1))[:, 0]

    def penalty(self) -> jax.Array:
        """The sum of the squares of the weights of all n-grams."""
        squares = [jnp.sum(jnp.square(PACE * bag.weight[...])) for bag in (self.question, self.passage)]
        return squares[0] + squares[1]


class Bag(nnx.Module):
    """The sum of the weights of a text's n-grams, each as far as it is rare, over the norm of all (tf-idf)."""

    rarity: nnx.Param[jax.Array]  # counted before training, and not learnt
    weight: nnx.Param[jax.Array]

    def __init__(self, rarity: np.ndarray):
        self.rarity = nnx.Param(jnp.asarray(rarity))
        self.weight = nnx.Param(jnp.zeros(len(rarity)))

    def __call__(self, grams: Array) -> jax.Array:
        """grams: [b, s, n] -> [b]"""
        rarity = jax.lax.stop_gradient(self.rarity[...])[grams]
        norm = jnp.sqrt(jnp.sum(jnp.square(rarity), axis=(1, 2)) + 1e-6)
        return PACE * jnp.sum(rarity * self.weight[...][grams], axis=(1, 2)) / norm


class Reader(nnx.Module):
    """Every word of the question attends to the passage, and is compared with what it found there (Parikh et al. 2016);
    of the comparisons, attention pooling picks those that matter."""

    vectors: nnx.Param[jax.Array]  # made before training, and not learnt further
    rarity: nnx.Param[jax.Array]  # counted before training, and not learnt
    project: nnx.Linear
    near: nnx.Linear
    attend: MultiHeadAttention
    compare: nnx.Linear
    pool: AttentionPooling
    dropout: nnx.Dropout
    out: nnx.Linear

    def __init__(self, lexicon: Lexicon, sizes: Sizes, implementation: str | None, rngs: nnx.Rngs):
        hidden, width = sizes.hidden, lexicon.vectors.shape[1]
        self.vectors = nnx.Param(jnp.asarray(lexicon.vectors * width**0.5))
        self.rarity = nnx.Param(jnp.asarray(lexicon.words.rarity / lexicon.words.rarity.max()))
        self.project = nnx.Linear(width, hidden, rngs=rngs)
        self.near = nnx.Linear(3 * (hidden + FLAGS + 1), hidden, rngs=rngs)
        self.attend = MultiHeadAttention(hidden, sizes.heads, implementation=implementation, rngs=rngs)
        self.compare = nnx.Linear(3 * hidden + FLAGS + 1, hidden, rngs=rngs)
        self.pool = AttentionPooling(hidden, implementation=implementation, rngs=rngs)
        self.dropout = nnx.Dropout(sizes.dropout)
        self.out = nnx.Linear(hidden, 1, rngs=rngs)

    def __call__(self, batch: Batch, rngs: nnx.Rngs | None) -> jax.Array:
        drop = lambda x: self.dropout(x, deterministic=rngs is None, rngs=rngs)
        facts, query = self._read(batch.question, batch.question_flags, drop)
        _, context = self._read(batch.passage, batch.passage_flags, drop)
        read = self.attend(query, context, mask=(batch.passage > 0)[:, None, None])
        both = jnp.concatenate([drop(jnp.concatenate([query, read, query * read], axis=-1)), facts], axis=-1)
        pooled = self.pool(jax.nn.relu(self.compare(both)), batch.question > 0)
        return self.out(drop(pooled))[:, 0]

    def weights(self, batch: Batch) -> jax.Array:
        """[b, h, t, s]: where each word of the question looks, for looking at."""
        keep = lambda x: x
        (_, query), (_, context) = (
            self._read(tokens, flags, keep)
            for tokens, flags in ((batch.question, batch.question_flags), (batch.passage, batch.passage_flags))
        )
        query, key, value = self.attend.query(query), self.attend.key(context), self.attend.value(context)
        return jattn.weights(query, key, value, mask=(batch.passage > 0)[:, None, None])

    def _read(self, tokens: Array, flags: Array, drop: Callable) -> tuple[jax.Array, jax.Array]:
        """What is known of each word of [b, s], and [b, s, hidden]: it and its neighbours."""
        vectors, rarity = (jax.lax.stop_gradient(table[...])[tokens] for table in (self.vectors, self.rarity))
        facts = jnp.concatenate([rarity[..., None], flags], axis=-1)
        words = jnp.concatenate([drop(self.project(vectors)), facts], axis=-1) * (tokens > 0)[..., None]
        around = jnp.pad(words, ((0, 0), (1, 1), (0, 0)))
        return facts, jax.nn.relu(self.near(jnp.concatenate([around[:, :-2], words, around[:, 2:]], axis=-1)))
