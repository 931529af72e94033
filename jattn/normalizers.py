"""Normalisers: how a row of scores becomes weights.

Each is a frozen dataclass pytree called with rows of scores `[.., s]`, -inf where the mask forbids; a row that may
attend to nothing gets weights 0.  Only `softmax` (and `gumbel`, which is one) has the online form of the fused
backends.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jattn._terms import Operand, Term, number, piece
from jattn.gates import seed_operand
from jattn.mods import Gumbel as GumbelNoise
from jattn.mods import Mod


class Normalizer(Term):
    """What `attention(normalizer=...)` takes.  Make one with the functions of this module."""

    mods: tuple[Mod, ...] = ()  # what the scores go through first
    is_softmax = False  # of those scores

    def __call__(self, scores: Any) -> Any:
        raise NotImplementedError


def logsumexp(scores: Any) -> Any:
    """log of the sum of exp over the last axis; -inf, with gradient 0, for a row that is -inf throughout."""
    top = jnp.max(scores, axis=-1, keepdims=True)
    top = jax.lax.stop_gradient(jnp.where(jnp.isneginf(top), 0, top))
    total = jnp.sum(jnp.exp(scores - top), axis=-1)
    return jnp.where(total > 0, jnp.log(jnp.where(total > 0, total, 1)) + top[..., 0], -jnp.inf)


def with_sink(lse: Any, sink: Any) -> tuple[Any, Any]:
    """A sink is a key of its own with value 0: the factor it puts on the weights, and the lse with it."""
    gap = jnp.where(jnp.isneginf(lse), -jnp.inf, lse - sink)
    return jax.nn.sigmoid(gap), logsumexp(jnp.stack(jnp.broadcast_arrays(lse, sink), axis=-1))


@piece
class Softmax(Normalizer):
    is_softmax = True

    def __call__(self, scores):
        lse = logsumexp(scores)[..., None]
        return jnp.exp(scores - jnp.where(jnp.isneginf(lse), 0, lse))


def softmax() -> Normalizer:
    """exp(score) / sum over s of exp(score)."""
    return Softmax()


@piece
class Sigmoid(Normalizer):
    bias: Any

    def __call__(self, scores):
        return jax.nn.sigmoid(scores + self.bias)


def sigmoid(bias: Any = 0.0) -> Normalizer:
    """1 / (1 + exp(-(score + bias))), elementwise (Ramapuram et al. 2024, who take bias = -log(s)).

    `bias` is a number, or a scalar array that gets a gradient.
    """
    return Sigmoid(number(bias, "bias"))


def _lowered(scores: Any) -> Any:
    """Scores with the greatest at 0, which changes no weight: sums of large scores would lose the small differences."""
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    return scores - jnp.where(jnp.isneginf(top), 0, top)


def _support(scores: Any, threshold: Any) -> tuple[Any, Any]:
    """Which entries get weight, and how many: entry n of the sorted row is in while it exceeds the threshold(n)."""
    ordered = -jnp.sort(-jax.lax.stop_gradient(scores), axis=-1)
    count = jnp.arange(1, scores.shape[-1] + 1, dtype=scores.dtype)
    live = ordered > -jnp.inf
    within = live & (ordered > threshold(jnp.where(live, ordered, 0), count))
    inside = scores >= jnp.min(jnp.where(within, ordered, jnp.inf), axis=-1, keepdims=True)
    return inside, jnp.maximum(jnp.sum(inside, axis=-1, keepdims=True), 1)


def _mean(scores: Any, inside: Any, size: Any) -> Any:
    return jnp.sum(jnp.where(inside, scores, 0), axis=-1, keepdims=True) / size


@piece
class Sparsemax(Normalizer):
    def __call__(self, scores):
        # the support is found without gradients; on it the projection is a plain formula, with every derivative
        scores = _lowered(scores)
        inside, size = _support(scores, lambda z, n: (jnp.cumsum(z, axis=-1) - 1) / n)
        tau = _mean(scores, inside, size) - 1 / size
        return jnp.where(inside, jnp.where(inside, scores, 0) - tau, 0)


def sparsemax() -> Normalizer:
    """The Euclidean projection of the scores onto the simplex (Martins & Astudillo 2016): many weights are exactly
    0."""
    return Sparsemax()


@piece
class Entmax15(Normalizer):
    def __call__(self, scores):
        z = _lowered(scores) / 2

        def threshold(ordered, n):
            mean, square = jnp.cumsum(ordered, axis=-1) / n, jnp.cumsum(ordered * ordered, axis=-1) / n
            return mean - jnp.sqrt(jnp.maximum((1 - n * (square - mean * mean)) / n, 0))

        inside, size = _support(z, threshold)
        mean = _mean(z, inside, size)
        spread = _mean((jnp.where(inside, z, 0) - mean) ** 2, inside, size)
        inner = 1 / size - spread
        tau = mean - jnp.sqrt(jnp.where(inner > 0, inner, 1)) * (inner > 0)
        return jnp.where(inside, (jnp.where(inside, z, 0) - tau) ** 2, 0)


def entmax15() -> Normalizer:
    """max(score/2 - tau, 0)^2 with tau such that the row sums to 1: 1.5-entmax (Peters et al. 2019), between softmax
    and sparsemax."""
    return Entmax15()


@piece
class Hard(Normalizer):
    straight_through: bool

    def __call__(self, scores):
        first = jnp.argmax(scores, axis=-1)[..., None] == jnp.arange(scores.shape[-1])
        chosen = (first & jnp.any(scores > -jnp.inf, axis=-1, keepdims=True)).astype(scores.dtype)
        if not self.straight_through:
            return chosen
        soft = Softmax()(scores)
        return chosen + (soft - jax.lax.stop_gradient(soft))


def hard(straight_through: bool = False) -> Normalizer:
    """One-hot of the first maximum (hard attention, Xu et al. 2015).

    Its gradient with respect to the scores is 0; `straight_through` gives it softmax's (Bengio et al. 2013).
    """
    return Hard(bool(straight_through))


@piece
class Gumbel(Normalizer):
    noise: GumbelNoise
    hard: bool

    @property
    def mods(self):
        return (self.noise,)

    @property
    def is_softmax(self):
        return not self.hard

    def __call__(self, scores):
        return (Hard(True) if self.hard else Softmax())(scores)


def gumbel(key: Any, temperature: Any = 1.0, hard: bool = False) -> Normalizer:
    """softmax((score + Gumbel noise) / temperature): a relaxed sample of one key (Jang et al. 2017; Maddison et al.
    2017).

    `key` is a `jax.random` key; `temperature` > 0 a number or a scalar array; `hard` gives the one-hot of it, with its
    gradient (straight through).  The noise is -log(-log(u)) with u from the hash of `jattn._hash.bits`.
    """
    temperature = number(temperature, "temperature")
    if not isinstance(temperature, Operand) and not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    try:
        seed = jax.random.bits(key, (), "uint32")
    except TypeError:
        raise TypeError(f"key must be one jax.random key, got {key!r}") from None
    return Gumbel(GumbelNoise(seed_operand(seed), temperature), bool(hard))
