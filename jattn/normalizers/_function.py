"""Normalisers that a user writes in JAX."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike

from jattn._terms import Operand, rows, term
from jattn._terms.closures import Closure
from jattn._terms.of_user import function_parts
from jattn.normalizers._normalizer import Normalizer


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
        # +inf comes from an overflow and would pass for any weight that `fn` gives it, as in `Sigmoid`
        return jnp.where(hidden, 0, weight + rows.flaw(jnp.maximum(scores, 0)))


def function(fn: Callable[..., ArrayLike], *operands: ArrayLike | Operand, elementwise: bool = False) -> Normalizer:
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
