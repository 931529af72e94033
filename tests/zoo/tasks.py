"""Tasks that take no time: what tests of the training loop and of the command line train."""

import functools

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jattn.zoo._task import Task
from jattn.zoo.dates.model import Sizes
from jattn.zoo.dates.task import dates

TINY = Sizes(embedding=8, hidden=12, heads=2, width=4)


@functools.cache
def tiny(score):
    """The dates with a small model."""
    return dates(score, batch=8, sizes=TINY)


def line(**changes):
    """The smallest task there is, for what the training loop does with any: a linear map, fitted to random points."""

    def batch(step):
        return np.random.default_rng(step).normal(size=(4, 3)).astype(np.float32)

    def loss(model, batch):
        return jnp.mean((model(batch) - batch.sum(-1, keepdims=True)) ** 2)

    task = Task(
        settings={"task": "line", "seed": 0},
        model=nnx.Linear(3, 1, rngs=nnx.Rngs(0)),
        optimizer=optax.adam(0.1),
        batch=batch,
        loss=loss,
        evaluate=lambda model: float(1 / (1 + loss(model, batch(99)))),
        metric="fit",
        pictures=lambda model: {},
    )
    return task._replace(**changes)
