"""An encoder and a decoder joined by nothing but attention, so that its weights tell all that the decoder was told.

The decoder starts from zeros, and its recurrent steps see only what it wrote before: what it knows of the source comes
through `jattn.attention`, after the recurrent step (Luong et al. 2015), so that in training one call serves all steps.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

import jattn
from jattn import masks, scores
from jattn.zoo.dates.data import ISO, START, Array


@dataclasses.dataclass(frozen=True)
class Sizes:
    """embedding: of a character.  hidden: of each of the three GRUs.  heads, width: of the attention."""

    embedding: int = 32
    hidden: int = 96
    heads: int = 1
    width: int = 64


class Memory(NamedTuple):
    """What the encoder hands to the decoder.  key, value: [b, s, h, d].  length: [b], of the source."""

    key: jax.Array
    value: jax.Array
    length: Array


class Score(nnx.Module):
    """A score of jattn by name, and the parameters that it learns, if any."""

    def __init__(self, name: str, sizes: Sizes, rngs: nnx.Rngs):
        vector, matrix = (sizes.heads, sizes.width), (sizes.heads, sizes.width, sizes.width)
        shapes = {"general": [matrix], "concat": [vector] * 2, "additive": [matrix, matrix, vector]}.get(name, [])
        normal = jax.nn.initializers.normal(sizes.width**-0.5)
        self.parameters = nnx.List([nnx.Param(normal(rngs.params(), shape)) for shape in shapes])
        if name == "cosine":
            self.parameters.append(nnx.Param(jnp.array(10.0)))  # a cosine alone is too flat for a softmax
        self.make = partial(scores.general, scale=sizes.width**-0.5) if name == "general" else getattr(scores, name)

    def __call__(self) -> scores.Score:
        return self.make(*(parameter[...] for parameter in self.parameters))


class Translator(nnx.Module):
    """A bidirectional GRU reads the source, a GRU reads what is written so far, and the second attends to the first."""

    def __init__(self, characters: int, score: str, sizes: Sizes, implementation: str | None, rngs: nnx.Rngs):
        embedding, hidden, attended = sizes.embedding, sizes.hidden, sizes.heads * sizes.width
        self.sizes, self.implementation = sizes, implementation
        self.source = nnx.Embed(characters, embedding, rngs=rngs)
        self.forward = nnx.GRUCell(embedding, hidden, rngs=rngs)
        self.backward = nnx.GRUCell(embedding, hidden, rngs=rngs)
        self.written = nnx.Embed(len(ISO) + 1, embedding, rngs=rngs)
        self.decoder = nnx.GRUCell(embedding, hidden, rngs=rngs)
        self.query = nnx.Linear(hidden, attended, rngs=rngs)
        self.key = nnx.Linear(2 * hidden, attended, rngs=rngs)
        self.value = nnx.Linear(2 * hidden, attended, rngs=rngs)
        self.score = Score(score, sizes, rngs)
        self.mix = nnx.Linear(hidden + attended, hidden, rngs=rngs)
        self.out = nnx.Linear(hidden, len(ISO), rngs=rngs)

    def __call__(self, source: Array, length: Array, target: Array) -> jax.Array:
        """source [b, s], length [b], target [b, t] -> logits [b, t, 11] of each character, given the ones before."""
        return self._logits(self._states(target), self.encode(source, length))

    def greedy(self, source: Array, length: Array) -> jax.Array:
        """source [b, s], length [b] -> [b, t]: the most likely character, ten times."""
        memory = self.encode(source, length)

        def write(carry, _):
            state, previous = carry
            state, _ = self.decoder(state, self.written(previous))
            character = jnp.argmax(self._logits(state[:, None], memory)[:, 0], axis=-1)
            return (state, character), character

        start = self._zeros(len(source)), jnp.full(len(source), START)
        return jax.lax.scan(write, start, length=len("YYYY-MM-DD"))[1].T

    def alignment(self, source: Array, length: Array, target: Array) -> jax.Array:
        """The weights [b, h, t, s] with which each character of the target attends to the source."""
        memory = self.encode(source, length)
        query = self._heads(self.query(self._states(target)))
        return jattn.weights(query, memory.key, memory.value, score=self.score(), mask=masks.lengths(length))

    def encode(self, source: Array, length: Array) -> Memory:
        embedded = self.source(jnp.asarray(source)).swapaxes(0, 1)
        inside = (jnp.arange(source.shape[1])[:, None] < length)[..., None]

        def read(cell: nnx.GRUCell, reverse: bool) -> jax.Array:
            def step(state, inputs):
                character, real = inputs
                state = jnp.where(real, cell(state, character)[0], state)
                return state, state

            return jax.lax.scan(step, self._zeros(len(source)), (embedded, inside), reverse=reverse)[1]

        states = jnp.concatenate([read(self.forward, False), read(self.backward, True)], axis=-1).swapaxes(0, 1)
        return Memory(self._heads(self.key(states)), self._heads(self.value(states)), length)

    def _states(self, target: Array) -> jax.Array:
        """[b, t] -> [b, t, hidden]: the decoder before each character of the target, which it has not seen yet."""
        previous = jnp.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=START)
        states = jax.lax.scan(self.decoder.__call__, self._zeros(len(target)), self.written(previous).swapaxes(0, 1))[1]
        return states.swapaxes(0, 1)

    def _logits(self, states: jax.Array, memory: Memory) -> jax.Array:
        context = jattn.attention(
            self._heads(self.query(states)),
            memory.key,
            memory.value,
            score=self.score(),
            mask=masks.lengths(memory.length),
            implementation=self.implementation,
        )
        both = jnp.concatenate([states, context.reshape(*context.shape[:2], -1)], axis=-1)
        return self.out(jnp.tanh(self.mix(both)))

    def _heads(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], self.sizes.heads, self.sizes.width)

    def _zeros(self, batch: int) -> jax.Array:
        return jnp.zeros((batch, self.sizes.hidden))
