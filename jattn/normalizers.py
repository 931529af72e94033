"""Normalisers: how a row of scores becomes weights.

Each is a frozen dataclass pytree called with rows of scores `[.., s]`, -inf where the mask forbids; a row that may
attend to nothing gets weights 0.  Only `softmax` (and `gumbel`, which is one) has the online form of the fused
backends; those that are elementwise are computed a tile at a time all the same, and all others in whole rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from numpy.typing import ArrayLike

from jattn._terms import FieldValue, Operand, Term, counter_hash, number, rows, term
from jattn._terms.closures import Closure, function_parts
from jattn.mods import Mod

__all__ = ["Normalizer", "entmax15", "function", "gumbel", "hard", "sigmoid", "softmax", "sparsemax"]


def __dir__() -> list[str]:
    return __all__


class Normalizer(Term):
    """What `attention(normalizer=...)` takes.  Make one with the functions of this module, or a subclass of your own,
    whose attributes may be numbers, and arrays, which get gradients.  It is called with whole rows of scores, unless it
    says that it is `elementwise`.

    >>> import dataclasses, jax, jax.numpy as jnp, jattn
    >>> @dataclasses.dataclass(frozen=True)
    ... class Power(jattn.normalizers.Normalizer):
    ...     scale: jax.Array
    ...
    ...     def __call__(self, scores):
    ...         weight = jnp.maximum(scores, 0) ** 2
    ...         return self.scale * weight / (1 + weight.sum(-1, keepdims=True))
    >>> q = jax.random.normal(jax.random.key(0), (1, 6, 2, 4))
    >>> jattn.attention(q, q, q, normalizer=Power(jnp.float32(0.5))).shape
    (1, 6, 2, 4)
    """

    mods: tuple[Mod, ...] = ()
    """What the scores go through first."""
    is_softmax: bool = False
    """Whether it is a softmax of the scores after these mods."""
    elementwise: bool = False
    """Whether a weight depends on its own score alone.  Blocks of keys are then computed apart and added up, and those
    that the mask hides are left out.  One that only says so is refused when `attention` is called."""

    def __call__(self, scores: jax.Array) -> jax.Array:
        """Weights `[.., s]` of rows of scores `[.., s]`, float32 or wider, -inf where the mask forbids.  There weights
        count as 0, whatever they are."""
        raise NotImplementedError


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


@term
class Sigmoid(Normalizer):
    """sigmoid(score + bias)."""

    elementwise = True

    bias: FieldValue

    def __call__(self, scores: jax.Array) -> jax.Array:
        # +inf would pass for a weight of 1, though it comes from an overflow, here as in a softmax
        return jax.nn.sigmoid(scores + self.bias) + rows.flaw(jnp.maximum(scores, 0))


def sigmoid(bias: ArrayLike = 0.0) -> Normalizer:
    """weight = 1 / (1 + exp(-(score + bias))), elementwise: weights of a row do not sum to 1.

    Args:
      bias: a number, or a scalar array that gets a gradient.  The paper takes -log(s), with s the number of keys.

    Raises:
      TypeError, ValueError: `bias` is not a number, or an array with axes.

    >>> import jax.numpy as jnp, jattn
    >>> jattn.normalizers.sigmoid()(jnp.array([0.0, -jnp.inf])).tolist()
    [0.5, 0.0]

    Source: Ramapuram et al. 2024, "Theory, Analysis, and Best Practices for Sigmoid Self-Attention".
    """
    return Sigmoid(number(bias, "bias"))


_STEPS = 100  # Newton's steps at most: they converge in about 20 at worst in float32, in 40 in float64


def _threshold(scores: jax.Array, step: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """tau `[.., 1]` at which the weights of a row, lowered, sum to 1: found without gradients, from -1, its least.

    `step(excess)`, with excess = max(score - tau, 0), is Newton's for a function of tau that is convex and falls.  From
    the left of the root such steps never pass it, and each divides the product of value and slope by 4 or more.  Whole
    rows are only ever summed, never sorted.
    """
    scores = jax.lax.stop_gradient(scores)
    precision = 4 * jnp.finfo(scores.dtype).eps

    def further(state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        n, tau, _ = state
        rise = step(jnp.maximum(scores - tau, 0))
        rises = rise > -precision * tau  # never so in a row of NaN, nor in one of -inf, whose excess is 0
        return n + 1, jnp.where(rises, tau + rise, tau), jnp.any(rises)

    # of the scores, so that inside `jax.shard_map` the state varies over the axes that they vary over
    start = jnp.where(rows.row_max(scores) > -1, -1, jnp.full_like(scores, -1, shape=()))
    first = jnp.int32(0), start, jnp.any(start < 0)
    _, tau, _ = jax.lax.while_loop(lambda state: state[2] & (state[0] < _STEPS), further, first)
    return checkpoint_name(tau, rows.THRESHOLD)


def _count(excess: jax.Array) -> jax.Array:
    """How many of a row exceed 0, NaN where one is NaN.  XLA divides faster than it turns booleans to numbers."""
    excess = jax.lax.stop_gradient(excess)
    return rows.row_sum(excess / (excess + jnp.finfo(excess.dtype).tiny))


def _excess(scores: jax.Array, tau: jax.Array) -> tuple[jax.Array, jax.Array]:
    """score - tau, and the same with 0 where it is not positive."""
    above = scores - tau
    return above, jnp.where(above <= 0, 0, above)


@term
class Sparsemax(Normalizer):
    """max(score - tau, 0), with tau such that the row sums to 1."""

    def __call__(self, scores: jax.Array) -> jax.Array:
        scores = rows.lowered(scores)
        step = lambda excess: (rows.row_sum(excess) - 1) / jnp.maximum(_count(excess), 1)
        # one more step, which is exact for the keys that are in; it has every derivative
        above, excess = _excess(scores, _threshold(scores, step))
        rise = (rows.row_sum(excess) - 1) / jnp.maximum(_count(excess), 1)
        return jnp.where(above <= rise, 0, above - rise)


def sparsemax() -> Normalizer:
    """weight = max(score - tau, 0) with tau such that the row sums to 1: the Euclidean projection of the scores onto
    the simplex, in which many weights are exactly 0.

    >>> import jax.numpy as jnp, jattn
    >>> jattn.normalizers.sparsemax()(jnp.array([1.0, 0.5, -1.0])).tolist()
    [0.75, 0.25, 0.0]

    Source: Martins & Astudillo 2016, equation 2.
    """
    return Sparsemax()


@term
class Entmax15(Normalizer):
    """max(score/2 - tau, 0)^2, with tau such that the row sums to 1."""

    def __call__(self, scores: jax.Array) -> jax.Array:
        scores = rows.lowered(scores) / 2

        def step(excess: jax.Array) -> jax.Array:
            # of the norm of the excess, which is closer to a line than its square; the sum is 1 at least, but where all
            # is -inf
            square = rows.row_sum(excess * excess)
            return (square - jnp.sqrt(square)) / jnp.maximum(rows.row_sum(excess), 1)

        above, excess = _excess(scores, _threshold(scores, step))
        # for the keys that are in, sum of (excess - rise)^2 = 1 is a quadratic equation; its root has every derivative
        total, square = rows.row_sum(excess), rows.row_sum(excess * excess)
        root = total * total + _count(excess) * (1 - square)
        rise = (square - 1) / (total + jnp.sqrt(jnp.where(root > 0, root, 1)))
        weight = jnp.where(above <= rise, 0, above - rise)
        return weight * weight


def entmax15() -> Normalizer:
    """weight = max(score/2 - tau, 0)^2 with tau such that the row sums to 1: entmax of alpha = 1.5, between softmax and
    sparsemax.

    >>> import jax.numpy as jnp, jattn
    >>> jattn.normalizers.entmax15()(jnp.array([2.0, 2.0, -2.0])).round(3).tolist()
    [0.5, 0.5, 0.0]

    Source: Peters et al. 2019, "Sparse Sequence-to-Sequence Models".
    """
    return Entmax15()


@term
class Hard(Normalizer):
    """One-hot of the first maximum."""

    straight_through: bool

    def __call__(self, scores: jax.Array) -> jax.Array:
        top = jax.lax.stop_gradient(rows.row_max(scores))
        if 0 in scores.shape:  # which has no maximum
            return scores
        first = jnp.argmax(scores, axis=-1, keepdims=True) == jax.lax.broadcasted_iota(
            int, scores.shape, scores.ndim - 1
        )
        empty = jnp.isneginf(top)
        chosen = jnp.where(empty, 0, first.astype(scores.dtype) + rows.flaw(jnp.where(empty, 0, top)))
        if not self.straight_through:
            return chosen
        soft = Softmax()(scores)
        return chosen + (soft - jax.lax.stop_gradient(soft))


def hard(straight_through: bool = False) -> Normalizer:
    """weight[i, j] = 1 for the first j with the greatest score, 0 for all others: hard attention.

    Args:
      straight_through: the gradient with respect to the scores is that of softmax; else it is 0.

    >>> import jax.numpy as jnp, jattn
    >>> jattn.normalizers.hard()(jnp.array([1.0, 3.0, 3.0])).tolist()
    [0.0, 1.0, 0.0]

    Source: Xu et al. 2015, section 4.1; straight through: Bengio et al. 2013.
    """
    return Hard(bool(straight_through))


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
    try:
        seed = jax.random.bits(key, (), "uint32")
    except TypeError:
        raise TypeError(f"key must be one jax.random key, got {key!r}") from None
    return Gumbel(GumbelNoise(counter_hash.seed(seed), divisor), bool(hard))


@term
class Function(Normalizer):
    """A user's function."""

    closure: Closure
    operands: tuple[Operand, ...]
    held: tuple[Operand, ...] = ()
    elementwise: bool = False

    def __call__(self, scores: jax.Array) -> jax.Array:
        hidden = jnp.isneginf(scores)
        # of a score alone nothing need be known of what is hidden, where -inf times an operand would be its gradient
        given = jnp.where(hidden, 0, scores) if self.elementwise else scores
        weight = jnp.asarray(self.closure.build(self.held)(given, *self.operands), scores.dtype)
        return jnp.where(hidden, 0, weight + rows.flaw(jnp.maximum(scores, 0)))  # as `Sigmoid`


def function(fn: Callable, *operands: ArrayLike | Operand, elementwise: bool = False) -> Normalizer:
    """weights of a row = fn(scores of the row, *operands): any normaliser that you can write in JAX.

    A hidden key gets weight 0, whatever `fn` says of it.  Operands and arrays that `fn` closes over get gradients, as
    in `jattn.mods.function`.

    Args:
      fn: takes scores `[bt, s]` in float32 or wider, whole rows of them in the order of the keys, -inf where a key is
        hidden, and an array for each operand; returns weights `[bt, s]`.  What multiplies a score and gets a gradient
        should not meet the -inf, since 0 * inf is NaN: `jnp.where(jnp.isneginf(scores), 0, scores)` has none.
      *operands: made with `jattn.operand`; each reaches `fn` broadcastable to `[bt, s]`.
      elementwise: says that a weight depends on its own score and on operands alone.  Then blocks of keys are computed
        apart and added up, those that the mask hides are never computed, and hidden scores reach `fn` as 0.

    Raises:
      TypeError: `fn` is not callable with that many arguments.  When `attention` is called, TypeError or ValueError: it
        returns no floating-point numbers `[bt, s]`, draws random numbers, or is not elementwise though said to be.

    ReLU attention, each weight divided by the number of keys that the query sees:

    >>> import jax, jax.numpy as jnp, jattn
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 6, 2, 4))
    >>> seen = jattn.operand(jnp.arange(1.0, 7.0), "t")
    >>> relu = jattn.normalizers.function(lambda s, n: jnp.maximum(s, 0) / n, seen, elementwise=True)
    >>> jattn.attention(q, k, v, normalizer=relu, mask=jattn.masks.causal()).shape
    (1, 6, 2, 4)

    Stick-breaking attention: from the latest key back, each takes its share of what is left of the stick, which needs
    the order of the keys.

    >>> def stick_breaking(scores):
    ...     left = jax.nn.log_sigmoid(-scores)  # what a key leaves, in logarithms: 0 of one that is hidden
    ...     later = jax.lax.cumsum(left, axis=scores.ndim - 1, reverse=True) - left
    ...     return jnp.exp(jax.nn.log_sigmoid(scores) + later)
    >>> breaking = jattn.normalizers.function(stick_breaking)
    >>> weights = jattn.weights(q, k, v, normalizer=breaking, mask=jattn.masks.causal(-1))
    >>> bool((weights.sum(-1) < 1).all())
    True

    Source: Wortsman et al. 2023, "Replacing softmax with ReLU in Vision Transformers"; Tan et al. 2024, "Stick-breaking
    Attention".
    """
    _, closure, named, held = function_parts("normalizers.function", fn, operands, "scores")
    return Function(closure, named, held, bool(elementwise))
