"""Sums over rows of scores that neither infinities, rows without keys nor large numbers spoil."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

THRESHOLD = "jattn_threshold"
"""What `jax.checkpoint` need not find again of a row, by name: a number a row."""


def finite_rows(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rows `[.., d]`, 0 in the place of those that are not finite throughout, and `[.., 1]` what is added to a result
    of theirs, that it be NaN.

    What comes back of rows that see nothing is 0.  In the gradient of what they were multiplied with, 0 * NaN would be
    NaN; where such a row is seen, its result is NaN, and so is what comes back.
    """
    finite = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True, initial=0)) < jnp.inf
    return jnp.where(finite, x, 0), row_sum(jnp.where(finite, 0, x - x))


def row_sum(x: jax.Array) -> jax.Array:
    """The sum of each row, `[.., 1]`."""
    return jnp.sum(x, axis=-1, keepdims=True)


def row_max(scores: jax.Array) -> jax.Array:
    """The greatest of each row, `[.., 1]`, -inf for a row without keys."""
    return jnp.max(scores, axis=-1, keepdims=True, initial=-jnp.inf)


def flaw(x: jax.Array) -> jax.Array:
    """0, or NaN where x is NaN or infinite; made, not written down: `jax_debug_nans` stops only at real ones."""
    x = jax.lax.stop_gradient(x)
    return x - x


def exponentials(scores: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """exp(score - top), their sum over the last axis, and top, the greatest score: `[.., s]`, `[.., 1]`, `[.., 1]`.

    A row that is -inf throughout gives 0, 1 and -inf, with gradient 0.  One that holds NaN or +inf, which no weights
    could stand for, gives NaN.
    """
    top = jax.lax.stop_gradient(row_max(scores))
    empty = jnp.isneginf(top)
    raised = jnp.exp(scores - jnp.where(empty, 0, top))
    return raised, jnp.where(empty, 1, row_sum(raised)), top


def logsumexp(scores: jax.Array) -> jax.Array:
    """log of the sum of exp over the last axis; -inf, with gradient 0, for a row that is -inf throughout."""
    _, total, top = exponentials(scores)
    return (jnp.log(total) + top)[..., 0]


def with_sink(lse: jax.Array, sink: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A sink is a key of its own with value 0: the factor it puts on the weights, and the lse with it."""
    gap = jnp.where(jnp.isneginf(lse), -jnp.inf, lse - sink)
    return jax.nn.sigmoid(gap), logsumexp(jnp.stack(jnp.broadcast_arrays(lse, sink), axis=-1))


def lowered(scores: jax.Array) -> jax.Array:
    """Scores with the greatest at 0, which changes no weight: sums of large scores would lose the small differences.

    A row that holds NaN or +inf is NaN throughout.
    """
    top = jax.lax.stop_gradient(row_max(scores))
    top = jnp.where(jnp.isneginf(top), 0, top)
    return scores - (top + flaw(top))


def merged(parts: Sequence[tuple[jax.Array, jax.Array]]) -> tuple[jax.Array, jax.Array]:
    """(out `[.., e]`, lse `[..]`) over all keys, from those over parts of them; out in the dtype of the first."""
    lses = jnp.stack([lse for _, lse in parts], axis=-1)
    lse = logsumexp(lses)
    shares = jnp.exp(lses - jnp.where(jnp.isneginf(lse), 0, lse)[..., None])
    seen = (jnp.where(jnp.isneginf(lse)[..., None], 0, out) for out, lse in parts)  # 0 * NaN would be NaN
    out = functools.reduce(jnp.add, (out * shares[..., n, None] for n, out in enumerate(seen)))
    return out.astype(parts[0][0].dtype), lse
