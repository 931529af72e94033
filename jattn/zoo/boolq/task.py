"""BoolQ as a task: the model, its loss, how many questions held out it answers, and what one of them attends to."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure

from jattn import viz
from jattn.zoo._average import Averaged, averaging
from jattn.zoo._optimizer import adam
from jattn.zoo._task import Task
from jattn.zoo.boolq import data
from jattn.zoo.boolq.model import Answerer, Reader, Sizes

PENALTY = 1.0  # what the squares of the weights of n-grams cost, shared by all examples
DRAWN = 50  # words of a passage in the picture


def boolq(
    attention: str,
    seed: int,
    implementation: str | None,
    batch: int = 64,
    sizes: Sizes | None = None,
    parts: data.Parts | None = None,
) -> Task:
    """The task, with attention or with bags of n-grams alone; `parts` in the place of the archive's questions."""
    sizes, parts = sizes or Sizes(), parts or data.parts()
    learnt, held_out = data.encoded(parts)
    penalty = PENALTY / (2 * len(parts.learnt))

    def loss(model: Averaged, batch: data.Batch) -> jax.Array:
        logits, read = model.now(batch, nnx.Rngs(jax.random.key(batch.seed)))
        # what is read has to answer alone as well: the bags learn sooner, and would leave it only what they got wrong
        both = (optax.sigmoid_binary_cross_entropy(each, batch.yes).mean() for each in (logits, read))
        return sum(both) + penalty * model.now.penalty()

    return Task(
        settings={
            "task": "boolq",
            "attention": attention,
            "seed": seed,
            "batch": batch,
            **dataclasses.asdict(sizes),
            "data": data.fingerprint(parts),
        },
        model=Averaged(Answerer(parts.lexicon, attention, sizes, implementation, nnx.Rngs(seed))),
        optimizer=averaging(adam(1e-3), keep=0.995),
        batch=lambda step: data.training_batch(learnt, seed, step, batch),
        loss=loss,
        evaluate=lambda model: _accuracy(model.mean, held_out),
        metric="held-out accuracy",
        pictures=lambda model: _pictures(model.mean, parts.held_out[0], data.rows(held_out, slice(0, 1))),
        baseline=("majority class", data.majority(held_out)),
    )


@nnx.jit
def _logits(model: Answerer, batch: data.Batch) -> jax.Array:
    return model(batch)[0]


def _accuracy(model: Answerer, held_out: data.Batch, size: int = 256) -> float:
    logits = [_logits(model, data.rows(held_out, slice(n, n + size))) for n in range(0, len(held_out.yes), size)]
    return float(np.mean((np.concatenate(logits) > 0) == held_out.yes))


def _pictures(model: Answerer, example: data.Example, batch: data.Batch) -> dict[str, Figure]:
    return {} if model.reader is None else {"attention.png": _attention(model, model.reader, example, batch)}


def _attention(model: Answerer, reader: Reader, example: data.Example, batch: data.Batch) -> Figure:
    """A question, and where its words look: the stretch of the passage at which they look most."""
    question, passage = example.question[: data.QUESTION], example.passage[: data.PASSAGE]
    weights = np.asarray(reader.weights(batch))[0].mean(0)[: len(question), : len(passage)]
    seen = np.convolve(weights.sum(0), np.ones(min(DRAWN, len(passage))), "valid")
    first = int(seen.argmax())
    shown = slice(first, first + DRAWN)
    chance = float(jax.nn.sigmoid(_logits(model, batch)[0]))
    answer = "yes" if example.yes else "no"
    title = f"{' '.join(question)}?  {answer}; the model: {chance:.0%} yes"
    figure = Figure(figsize=(15, 5), layout="constrained")
    names = {"ylabel": "question", "xlabel": f"passage, where {seen[first] / len(question):.0%} of the attention is"}
    viz.show_weights(weights[:, shown], question, passage[shown], **names, title=title, figure=figure)
    return figure
