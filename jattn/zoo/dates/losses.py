"""What each kind of attention learns from.

Soft attention reads a mean of all places and is a smooth function of its scores.  Hard attention reads one place for
each character, and the choice of it has no gradient.  Four ways to train it nevertheless:

    argmax             the scores learn nothing; all else makes the best of the places that they happen to choose
    straight-through   reads the best place forward, and learns backward as if it had read with softmax
    gumbel             reads with softmax of scores and noise, a draw that is not quite made (Gumbel-softmax)
    reinforce          reads a place drawn from the softmax; a place that cost less than expected becomes more probable

All of them read the best place once they are trained.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jattn import normalizers
from jattn.zoo.dates.data import Batch
from jattn.zoo.dates.model import Translator


class Example(NamedTuple):
    """A batch, and the key of what is drawn in its step."""

    batch: Batch
    key: jax.Array


def _likelihood(normalizer: Callable[[Any], normalizers.Normalizer]) -> Callable[[Translator, Example], jax.Array]:
    """Cross-entropy of the characters, read with what `normalizer` makes of the step's key."""

    def loss(model: Translator, example: Example) -> jax.Array:
        logits = model(*example.batch, normalizer=normalizer(example.key))
        return optax.softmax_cross_entropy_with_integer_labels(logits, example.batch.target).mean()

    return loss


def reinforce(model: Translator, example: Example) -> jax.Array:
    """Cross-entropy of the characters, each read at a place drawn; its gradient is that of the mean over all draws.

    d E[cost] = E[d cost + (cost - expected) d log p], with any `expected` that does not know the place (Williams 1992);
    it is learnt, from the decoder's state, and the nearer to the mean cost, the less the estimate varies.
    """
    assert model.expected_cost is not None, "made with baseline=True"
    source, length, target = example.batch
    states = model.states(target)
    context, _, log_prob = model.attention.sample(example.key, states, model.encode(source, length))
    cost = optax.softmax_cross_entropy_with_integer_labels(model.logits(states, context), target)
    expected = model.expected_cost(jax.lax.stop_gradient(states))[..., 0]
    paid = jax.lax.stop_gradient(cost)
    learnt = jax.lax.stop_gradient(paid - expected) * log_prob.sum(-1) + (expected - paid) ** 2
    return jnp.mean(cost + learnt - jax.lax.stop_gradient(learnt))


LOSSES: dict[str, Callable[[Translator, Example], jax.Array]] = {
    "soft": _likelihood(lambda key: normalizers.softmax()),
    "argmax": _likelihood(lambda key: normalizers.hard()),
    "straight-through": _likelihood(lambda key: normalizers.hard(straight_through=True)),
    "gumbel": _likelihood(normalizers.gumbel),
    "reinforce": reinforce,
}
