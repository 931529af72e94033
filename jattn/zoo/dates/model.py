"""An encoder and a decoder joined by nothing but attention, so that its weights tell all that the decoder was told.

The decoder starts from zeros, and its recurrent steps see only what it wrote before: what it knows of the source comes
through `Seq2SeqAttention`, after the recurrent step (Luong et al. 2015), so that in training one call serves all steps.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jattn.nn import Cache, Seq2SeqAttention
from jattn.nn.seq2seq import ScoreName
from jattn.zoo.dates.data import ISO, START, Array


@dataclasses.dataclass(frozen=True)
class Sizes:
    """embedding: of a character.  hidden: of each of the three GRUs.  heads, width: of the attention."""

    embedding: int = 32
    hidden: int = 96
    heads: int = 1
    width: int = 64


class Translator(nnx.Module):
    """A bidirectional GRU reads the source, a GRU reads what is written so far, and the second attends to the first.

    Args:
      characters: how many tokens a source is made of.
      score, static, implementation: of the attention.
      baseline: whether there is an `expected_cost` of each character, of the decoder's state [b, t, hidden], for
        REINFORCE.

    To its methods, `attention` is what `Seq2SeqAttention` takes for a call: the normaliser, where it is not softmax.
    """

    hidden: int
    source: nnx.Embed
    forward: nnx.GRUCell
    backward: nnx.GRUCell
    written: nnx.Embed
    decoder: nnx.GRUCell
    attention: Seq2SeqAttention
    mix: nnx.Linear
    out: nnx.Linear
    expected_cost: nnx.Linear | None

    def __init__(
        self,
        characters: int,
        sizes: Sizes,
        *,
        score: ScoreName,
        static: bool,
        baseline: bool,
        implementation: str | None,
        rngs: nnx.Rngs,
    ):
        embedding, hidden, attended = sizes.embedding, sizes.hidden, sizes.heads * sizes.width
        self.hidden = hidden
        self.source = nnx.Embed(characters, embedding, rngs=rngs)
        self.forward = nnx.GRUCell(embedding, hidden, rngs=rngs)
        self.backward = nnx.GRUCell(embedding, hidden, rngs=rngs)
        self.written = nnx.Embed(len(ISO) + 1, embedding, rngs=rngs)
        self.decoder = nnx.GRUCell(embedding, hidden, rngs=rngs)
        self.attention = Seq2SeqAttention(
            hidden, sizes.heads, head_dim=sizes.width, memory_features=2 * hidden, score=score, static=static,
            implementation=implementation, rngs=rngs,
        )  # fmt: skip
        self.mix = nnx.Linear(hidden + attended, hidden, rngs=rngs)
        self.out = nnx.Linear(hidden, len(ISO), rngs=rngs)
        self.expected_cost = nnx.data(nnx.Linear(hidden, 1, rngs=rngs) if baseline else None)

    def __call__(self, source: Array, length: Array, target: Array, **attention: Any) -> jax.Array:
        """source [b, s], length [b], target [b, t] -> logits [b, t, 11] of each character, given the ones before."""
        states = self.states(target)
        return self.logits(states, self.attention(states, self.encode(source, length), **attention))

    def greedy(self, source: Array, length: Array, **attention: Any) -> jax.Array:
        """source [b, s], length [b] -> [b, t]: the most likely character, ten times."""
        memory = self.encode(source, length)

        def write(carry, _):
            state, previous = carry
            state, _ = self.decoder(state, self.written(previous))
            states = state[:, None]
            logits = self.logits(states, self.attention(states, memory, **attention))
            character = jnp.argmax(logits[:, 0], axis=-1)
            return (state, character), character

        start = self._zeros(len(source)), jnp.full(len(source), START)
        return jax.lax.scan(write, start, length=len("YYYY-MM-DD"))[1].T

    def alignment(self, source: Array, length: Array, target: Array, **attention: Any) -> jax.Array:
        """The weights [b, h, t, s] with which each character of the target attends to the source."""
        return self.attention.weights(self.states(target), self.encode(source, length), **attention)

    def encode(self, source: Array, length: Array) -> Cache:
        embedded = self.source(jnp.asarray(source)).swapaxes(0, 1)
        inside = (jnp.arange(source.shape[1])[:, None] < length)[..., None]

        def read(cell: nnx.GRUCell, reverse: bool) -> jax.Array:
            def step(state, inputs):
                character, real = inputs
                state = jnp.where(real, cell(state, character)[0], state)
                return state, state

            return jax.lax.scan(step, self._zeros(len(source)), (embedded, inside), reverse=reverse)[1]

        states = jnp.concatenate([read(self.forward, False), read(self.backward, True)], axis=-1).swapaxes(0, 1)
        return self.attention.read(states, length)

    def states(self, target: Array) -> jax.Array:
        """[b, t] -> [b, t, hidden]: the decoder before each character of the target, which it has not seen yet."""
        previous = jnp.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=START)
        states = jax.lax.scan(self.decoder.__call__, self._zeros(len(target)), self.written(previous).swapaxes(0, 1))[1]
        return states.swapaxes(0, 1)

    def logits(self, states: jax.Array, context: jax.Array) -> jax.Array:
        """Of the decoder's states [b, t, hidden] and what each of them read of the source."""
        return self.out(jnp.tanh(self.mix(jnp.concatenate([states, context], axis=-1))))

    def _zeros(self, batch: int) -> jax.Array:
        return jnp.zeros((batch, self.hidden))
