"""The documents as a task: the model, its loss, accuracy on pages held out, and a page as the model read it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Literal

import jax
import numpy as np
import optax
from flax import nnx
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jattn.zoo._task import Task
from jattn.zoo.documents import data
from jattn.zoo.documents.model import Reader, Sizes

DROPPED = 0.3  # share of the words that training makes unknown
UNKNOWN = "<unk>"  # in the picture; three words to `split_words`, and so none of the vocabulary
CHUNK = 100  # pages examined at a time, so that memory does not grow with their number


def documents(
    pooling: Literal["attention", "mean"],
    sentence_gru: bool,
    seed: int,
    implementation: str | None,
    batch: int = 32,
    sizes: Sizes | None = None,
    examined: str = "held out",
    parts: Mapping[str, data.Part] | None = None,
) -> Task:
    """The task for one of the poolings.

    Args:
        examined: "validation" to choose sizes and the like with.
        parts: in the place of the archive's sentences.
    """
    sizes, parts = sizes or Sizes(), parts or data.parts()
    words = data.vocabulary(parts["training"])
    training = data.encoded(parts["training"], words)
    pages = data.examination(data.encoded(parts[examined], words))
    praised = pages.praised.mean()
    return Task(
        settings={
            "task": "documents",
            "pooling": pooling,
            "sentence_gru": sentence_gru,
            "seed": seed,
            "batch": batch,
            **dataclasses.asdict(sizes),
            "data": data.fingerprint(parts),
        },
        model=Reader(len(words) + data.UNKNOWN + 1, pooling, sentence_gru, sizes, implementation, nnx.Rngs(seed)),
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-3)),
        batch=lambda step: data.training_batch(training, seed, step, batch, DROPPED),
        loss=_loss,
        evaluate=lambda model: accuracy(model, pages),
        metric=f"{examined.replace(' ', '-')} accuracy",
        pictures=lambda model: {"page.png": draw(model, pages, words)},
        baseline=("majority class", float(max(praised, 1 - praised))),
    )


def _loss(model: Reader, batch: data.Batch) -> jax.Array:
    return optax.sigmoid_binary_cross_entropy(model(batch.words), batch.praised).mean()


@nnx.jit
def _examine(model: Reader, words: data.Array) -> jax.Array:
    return model(words) > 0


@nnx.jit
def _weigh(model: Reader, words: data.Array) -> tuple[jax.Array, jax.Array]:
    return model.weights(words)


def accuracy(model: Reader, batch: data.Batch, chunk: int = CHUNK) -> float:
    starts = range(0, len(batch.words), chunk)
    guesses = np.concatenate([_examine(model, batch.words[start : start + chunk]) for start in starts])
    return float(np.mean(guesses == batch.praised))


def draw(model: Reader, batch: data.Batch, vocabulary: Iterable[str], page: int = 0) -> Figure:
    """A page, a line a sentence: how much the sentence counted, and each word for its sentence."""
    words, place = batch.words[page], int(batch.place[page])
    by_word, by_sentence = (np.asarray(x)[0] for x in _weigh(model, words[None]))
    tokens = ["", UNKNOWN, *vocabulary]
    figure = Figure(figsize=(17, 6.5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, data.LONGEST))
    _cells(left, by_sentence[:, None], [[f"{weight:.2f}"] for weight in by_sentence])
    _cells(right, np.where(words == data.PADDING, np.nan, by_word), [[tokens[word] for word in row] for row in words])
    left.set(title="sentence", xticks=[], ylabel="sentence of the page: its weight")
    left.set_yticks(range(len(words)), ["film" if n == place else str(n) for n in range(len(words))])
    right.set(title=f"words; {UNKNOWN} is one that is not in the vocabulary", yticks=[])
    right.set_xlabel(f"word of the sentence, of which the first {data.LONGEST} are read")
    right.set_xticks(range(data.LONGEST))
    figure.colorbar(right.images[0], ax=right, label="weight of a word in its sentence", pad=0.01)
    said, read = (("pans", "praises")[int(x)] for x in (batch.praised[page], _examine(model, words[None])[0]))
    figure.suptitle(f"the critic {said} the film; the model reads: {read}")
    return figure


def _cells(axes: Axes, weights: np.ndarray, texts: list[list[str]]) -> None:
    """A heat map with a text in each cell."""
    top = max(float(np.nanmax(weights)), 1e-9)
    axes.imshow(weights, cmap="Blues", vmin=0.0, vmax=top, aspect="auto", interpolation="nearest")
    for n, row in enumerate(texts):
        for m, text in enumerate(row):
            short = text if len(text) <= 16 else text[:15] + "\N{HORIZONTAL ELLIPSIS}"
            size = 7 * min(1, 11 / max(len(short), 1))  # points: a cell has room for 11 letters of 7
            color = "white" if weights[n, m] > 0.6 * top else "black"
            axes.text(m, n, short, ha="center", va="center", fontsize=size, color=color, parse_math=False)
