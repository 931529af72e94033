"""The vowels as a task: the model, its loss, accuracy on the test utterances, and what the classifier listened to."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure

from jattn import viz
from jattn.zoo._task import Task
from jattn.zoo.vowels import data
from jattn.zoo.vowels.model import Classifier, Sizes

NOISE = 0.3  # of a standard deviation: 270 utterances are soon learnt by heart
DRAWN = (0, 3, 6, 8)  # speakers in the picture


def vowels(
    summary: Literal["attention", "mean", "last"],
    seed: int,
    implementation: str | None,
    batch: int = 32,
    sizes: Sizes | None = None,
    parts: data.Parts | None = None,
) -> Task:
    """The task for one of the summaries; `parts` in the place of the archive's utterances."""
    sizes, (training, held_out) = sizes or Sizes(), parts or data.parts()
    return Task(
        settings={"task": "vowels", "summary": summary, "seed": seed, "batch": batch, **dataclasses.asdict(sizes)},
        model=Classifier(summary, sizes, implementation, nnx.Rngs(seed)),
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-3)),
        batch=lambda step: data.training_batch(training, seed, step, batch, NOISE),
        loss=_loss,
        evaluate=lambda model: _accuracy(model, held_out),
        metric="held-out accuracy",
        pictures=lambda model: {"weights.png": _picture(model, held_out)},
        baseline=("largest class", float(np.bincount(held_out.speaker).max() / len(held_out.speaker))),
    )


def _loss(model: Classifier, batch: data.Utterances) -> jax.Array:
    logits = model(batch.series, batch.length)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch.speaker).mean()


@nnx.jit
def _examine(model: Classifier, series: data.Array, length: data.Array) -> tuple[jax.Array, jax.Array]:
    """The speaker [b] that is heard, and the weights [b, s]."""
    return model(series, length).argmax(axis=-1), model.weights(series, length)


def _accuracy(model: Classifier, examined: data.Utterances) -> float:
    series, length, speaker = examined
    return float(np.mean(np.asarray(_examine(model, series, length)[0]) == speaker))


def _picture(model: Classifier, examined: data.Utterances) -> Figure:
    """A test utterance of each of some speakers: its coefficients, and how much each step counted."""
    rows = [int(np.argmax(examined.speaker == speaker)) for speaker in DRAWN]
    series, length, speaker = (x[rows] for x in examined)
    heard, weights = (np.asarray(x) for x in _examine(model, series, length))
    names = [f"said by speaker {a + 1}, heard as {b + 1}" for a, b in zip(speaker, heard, strict=True)]
    figure = Figure(figsize=(10, 2.7 * len(rows) + 1), layout="constrained")
    title = "weight of each step of an utterance, above its coefficients"
    viz.show_positions(weights, signal=series, lengths=length, names=names, xlabel="step", title=title, figure=figure)
    return figure
