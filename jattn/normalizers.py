"""Normalisers: how a row of scores becomes weights.

Each is a frozen dataclass pytree called with rows of scores `[.., s]`, -inf where the mask forbids; a row that may
attend to nothing gets weights 0.  Only `softmax` (and `gumbel`, which is one) has the online form of the fused
backends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jattn._terms import Operand, Term, number, term
from jattn.gates import seed_operand
from jattn.mods import Gumbel as GumbelNoise
from jattn.mods import Mod

THRESHOLD = "jattn_threshold"  # what `jax.checkpoint` need not find again, a number a row


class Normalizer(Term):
    """What `attention(normalizer=...)` takes.  Make one with the functions of this module, or a subclass of your own:
    it is called with whole rows of scores.
    """

    mods: tuple[Mod, ...] = ()  # what the scores go through first
    is_softmax = False  # of those scores

    def __call__(self, scores: Any) -> Any:
        raise NotImplementedError


def _exponentials(scores: Any) -> tuple[Any, Any, Any]:
    """exp(score - top), their sum over the last axis, and top, the greatest score: `[.., s]`, `[.., 1]`, `[.., 1]`.

    A row that is -inf throughout gives 0, 1 and -inf, with gradient 0.  One that holds NaN or +inf, which no weights
    could stand for, gives NaN.
    """
    top = jax.lax.stop_gradient(_top(scores))
    empty = jnp.isneginf(top)
    exponentials = jnp.exp(scores - jnp.where(empty, 0, top))
    return exponentials, jnp.where(empty, 1, _sum(exponentials)), top


def logsumexp(scores: Any) -> Any:
    """log of the sum of exp over the last axis; -inf, with gradient 0, for a row that is -inf throughout."""
    _, total, top = _exponentials(scores)
    return (jnp.log(total) + top)[..., 0]


def with_sink(lse: Any, sink: Any) -> tuple[Any, Any]:
    """A sink is a key of its own with value 0: the factor it puts on the weights, and the lse with it."""
    gap = jnp.where(jnp.isneginf(lse), -jnp.inf, lse - sink)
    return jax.nn.sigmoid(gap), logsumexp(jnp.stack(jnp.broadcast_arrays(lse, sink), axis=-1))


def _sum(x: Any) -> Any:
    return jnp.sum(x, axis=-1, keepdims=True)


def flaw(x: Any) -> Any:
    """0, or NaN where x is NaN or infinite; made, not written down: `jax_debug_nans` stops only at real ones."""
    x = jax.lax.stop_gradient(x)
    return x - x


def _top(scores: Any) -> Any:
    """The greatest of each row, `[.., 1]`, -inf for a row without keys."""
    return jnp.max(scores, axis=-1, keepdims=True, initial=-jnp.inf)


@term
class Softmax(Normalizer):
    is_softmax = True

    def __call__(self, scores):
        # not exp(score - lse): where all scores are the least finite number, it is 1 for each
        exponentials, total, _ = _exponentials(scores)
        return exponentials / total


def softmax() -> Normalizer:
    """exp(score) / sum over s of exp(score)."""
    return Softmax()


@term
class Sigmoid(Normalizer):
    bias: Any

    def __call__(self, scores):
        # +inf would pass for a weight of 1, though it comes from an overflow, here as in a softmax
        return jax.nn.sigmoid(scores + self.bias) + flaw(jnp.maximum(scores, 0))


def sigmoid(bias: Any = 0.0) -> Normalizer:
    """1 / (1 + exp(-(score + bias))), elementwise (Ramapuram et al. 2024, who take bias = -log(s)).

    `bias` is a number, or a scalar array that gets a gradient.
    """
    return Sigmoid(number(bias, "bias"))


def lowered(scores: Any) -> Any:
    """Scores with the greatest at 0, which changes no weight: sums of large scores would lose the small differences.

    A row that holds NaN or +inf is NaN throughout.
    """
    top = jax.lax.stop_gradient(_top(scores))
    top = jnp.where(jnp.isneginf(top), 0, top)
    return scores - (top + flaw(top))


_STEPS = 100  # Newton's steps at most: they converge in about 20 at worst in float32, in 40 in float64


def _threshold(scores: Any, step: Callable) -> Any:
    """tau `[.., 1]` at which the weights of a row, lowered, sum to 1: found without gradients, from -1, its least.

    `step(excess)`, with excess = max(score - tau, 0), is Newton's for a function of tau that is convex and falls.  From
    the left of the root such steps never pass it, and each divides the product of value and slope by 4 or more.  Whole
    rows are only ever summed, never sorted.
    """
    scores = jax.lax.stop_gradient(scores)
    precision = 4 * jnp.finfo(scores.dtype).eps

    def further(state):
        n, tau, _ = state
        rise = step(jnp.maximum(scores - tau, 0))
        rises = rise > -precision * tau  # never so in a row of NaN, nor in one of -inf, whose excess is 0
        return n + 1, jnp.where(rises, tau + rise, tau), jnp.any(rises)

    # of the scores, so that inside `jax.shard_map` the state varies over the axes that they vary over
    start = jnp.where(_top(scores) > -1, -1, jnp.full_like(scores, -1, shape=()))
    tau = jax.lax.while_loop(lambda state: state[2] & (state[0] < _STEPS), further, (0, start, jnp.any(start < 0)))[1]
    return checkpoint_name(tau, THRESHOLD)


def _count(excess: Any) -> Any:
    """How many of a row exceed 0, NaN where one is NaN.  XLA divides faster than it turns booleans to numbers."""
    excess = jax.lax.stop_gradient(excess)
    return _sum(excess / (excess + jnp.finfo(excess.dtype).tiny))


def _excess(scores: Any, tau: Any) -> tuple[Any, Any]:
    """score - tau, and the same with 0 where it is not positive."""
    above = scores - tau
    return above, jnp.where(above <= 0, 0, above)


@term
class Sparsemax(Normalizer):
    def __call__(self, scores):
        scores = lowered(scores)
        step = lambda excess: (_sum(excess) - 1) / jnp.maximum(_count(excess), 1)
        # one more step, which is exact for the keys that are in; it has every derivative
        above, excess = _excess(scores, _threshold(scores, step))
        rise = (_sum(excess) - 1) / jnp.maximum(_count(excess), 1)
        return jnp.where(above <= rise, 0, above - rise)


def sparsemax() -> Normalizer:
    """The Euclidean projection of the scores onto the simplex (Martins & Astudillo 2016): many weights are exactly
    0."""
    return Sparsemax()


@term
class Entmax15(Normalizer):
    def __call__(self, scores):
        scores = lowered(scores) / 2

        def step(excess):  # of the norm of the excess, which is closer to a line than its square
            square = _sum(excess * excess)
            return (square - jnp.sqrt(square)) / jnp.maximum(_sum(excess), 1)  # 1 at least, but where all is -inf

        above, excess = _excess(scores, _threshold(scores, step))
        # for the keys that are in, sum of (excess - rise)^2 = 1 is a quadratic equation; its root has every derivative
        total, square = _sum(excess), _sum(excess * excess)
        root = total * total + _count(excess) * (1 - square)
        rise = (square - 1) / (total + jnp.sqrt(jnp.where(root > 0, root, 1)))
        weight = jnp.where(above <= rise, 0, above - rise)
        return weight * weight


def entmax15() -> Normalizer:
    """max(score/2 - tau, 0)^2 with tau such that the row sums to 1: 1.5-entmax (Peters et al. 2019), between softmax
    and sparsemax."""
    return Entmax15()


@term
class Hard(Normalizer):
    straight_through: bool

    def __call__(self, scores):
        top = jax.lax.stop_gradient(_top(scores))
        if 0 in scores.shape:  # which has no maximum
            return scores
        first = jnp.argmax(scores, axis=-1, keepdims=True) == jax.lax.broadcasted_iota(
            int, scores.shape, scores.ndim - 1
        )
        empty = jnp.isneginf(top)
        chosen = jnp.where(empty, 0, first.astype(scores.dtype) + flaw(jnp.where(empty, 0, top)))
        if not self.straight_through:
            return chosen
        soft = Softmax()(scores)
        return chosen + (soft - jax.lax.stop_gradient(soft))


def hard(straight_through: bool = False) -> Normalizer:
    """One-hot of the first maximum (hard attention, Xu et al. 2015).

    Its gradient with respect to the scores is 0; `straight_through` gives it softmax's (Bengio et al. 2013).
    """
    return Hard(bool(straight_through))


@term
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
    gradient (straight through).  The noise is -log(-log(u)) with u from the hash of `jattn._terms.counter_hash.bits`.
    """
    temperature = number(temperature, "temperature")
    if not isinstance(temperature, Operand) and not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    try:
        seed = jax.random.bits(key, (), "uint32")
    except TypeError:
        raise TypeError(f"key must be one jax.random key, got {key!r}") from None
    return Gumbel(GumbelNoise(seed_operand(seed), temperature), bool(hard))
