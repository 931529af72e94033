"""Averages of parameters over the steps (Polyak & Juditsky 1992): the noise of single batches is not in them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx


class Averaged(nnx.Module):
    """now: the model that learns.  mean: the average of what it was, to be evaluated; `averaging` keeps it."""

    mean: Any
    now: Any

    def __init__(self, model: nnx.Module):
        self.mean, self.now = nnx.clone(model), model


def averaging(inner: optax.GradientTransformation, keep: float) -> optax.GradientTransformation:
    """`inner` for the `now` of an `Averaged`, and for its mean

        mean = k mean + (1 - k) now,   k = min(keep, n / (n + 10)) after n steps

    so that the first steps, which are the worst, are soon forgotten (as TensorFlow's moving averages do).
    """

    def init(params: Any) -> Any:
        return inner.init(_halves(params)[1]), jnp.zeros((), jnp.int32)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        (mean, now), (_, slopes), (inner_state, count) = _halves(params), _halves(updates), state
        steps, inner_state = inner.update(slopes, inner_state, now)
        share = 1 - jnp.minimum(keep, count / (count + 10))
        moves = jax.tree.map(lambda x, m: share * (x - m), optax.apply_updates(now, steps), mean)
        return jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves([moves, steps])), (inner_state, count + 1)

    return optax.GradientTransformation(init, update)


def _halves(params: Any) -> tuple[list[Any], list[Any]]:
    """The leaves of `mean` and of `now`: in this order, that of their names, and alike."""
    leaves = jax.tree.leaves(params)
    return leaves[: len(leaves) // 2], leaves[len(leaves) // 2 :]
