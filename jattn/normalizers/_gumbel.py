"""A random draw of one key, relaxed: noise on the scores, and a softmax."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike

from jattn._terms import FieldValue, Operand, counter_hash, number, plain, term
from jattn.mods import Mod
from jattn.normalizers._hard import Hard
from jattn.normalizers._normalizer import Normalizer
from jattn.normalizers._softmax import Softmax


@term
class GumbelNoise(Mod):
    """(score + Gumbel noise) / temperature; the noise is a function of seed, b, h, i, j by `counter_hash`."""

    finite = True

    seed: FieldValue
    temperature: FieldValue
    b: FieldValue = None
    h: FieldValue = None

    def bound(self, b: Operand, h: Operand) -> GumbelNoise:
        return dataclasses.replace(self, b=b, h=h)

    def __call__(self, score: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
        # Which key of a row is the greatest depends on all of its numbers: bits of pairs, of which any two in a row are
        # independent but not any number, are mixed once more.
        bits = counter_hash.mix(counter_hash.bits(self.seed, self.b, self.h, i, j))
        u = counter_hash.uniform(bits, score.dtype.type)
        return (score - jnp.log(-jnp.log(u))) * (1 / self.temperature)


@term
class Gumbel(Normalizer):
    """Softmax of scores with Gumbel noise, or its one-hot."""

    noise: GumbelNoise
    hard: bool

    @property
    def mods(self) -> tuple[Mod, ...]:
        return (self.noise,)

    @property
    def is_softmax(self) -> bool:
        return not self.hard

    def __call__(self, scores: jax.Array) -> jax.Array:
        return (Hard(True) if self.hard else Softmax())(scores)


def gumbel(key: jax.Array, temperature: ArrayLike = 1.0, hard: bool = False) -> Normalizer:
    """weight = softmax((score + noise) / temperature), noise = -log(-log(u)): a relaxed sample of one key.

    u comes from `mix(bits(..))` of `jattn._terms.counter_hash`: the same key gives the same noise on every backend.

    Args:
      key: one `jax.random` key.
      temperature: a number > 0, or a scalar array that gets a gradient.
      hard: the one-hot of it, with its gradient (straight through).

    Raises:
      TypeError: `key` is not one key, or `temperature` not a number.
      ValueError: `temperature` is a number <= 0, or an array with axes.

    >>> import jax, jattn
    >>> q = jax.random.normal(jax.random.key(0), (1, 6, 2, 4))
    >>> jattn.attention(q, q, q, normalizer=jattn.normalizers.gumbel(jax.random.key(1), 0.5)).shape
    (1, 6, 2, 4)

    Source: Jang et al. 2017, equation 2; Maddison et al. 2017.
    """
    divisor = number(temperature, "temperature")
    if not isinstance(divisor, Operand) and not divisor > 0:
        raise ValueError(f"temperature must be > 0, got {divisor}")
    key = plain(key)
    try:
        seed = jax.random.bits(key, (), "uint32")
    except (TypeError, ValueError):
        got = f"{key.dtype}{list(key.shape)}" if isinstance(key, jax.Array) else repr(key)
        raise TypeError(f"key must be one jax.random key, got {got}") from None
    return Gumbel(GumbelNoise(counter_hash.seed(seed), divisor), bool(hard))
