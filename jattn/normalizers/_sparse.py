"""Weights of which many are exactly 0: what exceeds a threshold of its row."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jattn._terms import rows, term
from jattn.normalizers._normalizer import Normalizer

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

    # -1 is computed from the scores, so that inside `jax.shard_map` it varies over the axes that they vary over: the
    # loop's state has to from the start
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
            # Newton's step is for the norm of the excess, which is closer to a line than its square is; 1 takes the
            # place of a smaller sum, which only a row has in which all is -inf
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
