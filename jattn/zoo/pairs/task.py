"""The pairs as a task: the model, its loss, how many pairs held out it tells, and pictures of which words match."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec

from jattn import viz
from jattn.zoo._average import Averaged, averaging
from jattn.zoo._optimizer import adam
from jattn.zoo._task import Task
from jattn.zoo.pairs import data
from jattn.zoo.pairs.model import Reader, Sizes

DRAWN = 14  # words: the most that a verse of the pictures has


def pairs(
    attention: str,
    pooling: str,
    seed: int,
    implementation: str | None,
    batch: int = 64,
    sizes: Sizes | None = None,
    parts: data.Parts | None = None,
) -> Task:
    """The task for one kind of attention and one of pooling; `parts` in the place of the archive's Bibles."""
    sizes, parts = sizes or Sizes(), parts or data.parts()
    learnt, held_out = data.encoded(parts)
    return Task(
        settings={
            "task": "pairs",
            "attention": attention,
            "pooling": pooling,
            "seed": seed,
            "batch": batch,
            **dataclasses.asdict(sizes),
        },
        model=Averaged(Reader(parts.size, attention, pooling, sizes, implementation, nnx.Rngs(seed))),
        optimizer=averaging(adam(2e-3), keep=0.995),
        batch=lambda step: data.training_batch(learnt, seed, step, batch),
        loss=_loss,
        evaluate=lambda model: _accuracy(model.mean, held_out),
        metric="held-out accuracy",
        pictures=lambda model: {"matches.png": _matches(model.mean, parts)},
        baseline=("counting shared words", data.counting(parts)),
    )


def _loss(model: Averaged, batch: data.Batch) -> jax.Array:
    logits = model.now(batch.left, batch.right, nnx.Rngs(jax.random.key(batch.seed)))
    return optax.sigmoid_binary_cross_entropy(logits, batch.same).mean()


@nnx.jit
def _logits(model: Reader, left: data.Array, right: data.Array) -> jax.Array:
    return model(left, right)


def _accuracy(model: Reader, held_out: data.Batch, size: int = 256) -> float:
    logits = [
        _logits(model, held_out.left[n : n + size], held_out.right[n : n + size])
        for n in range(0, len(held_out.same), size)
    ]
    return float(np.mean((np.concatenate(logits) > 0) == held_out.same))


def _matches(model: Reader, parts: data.Parts) -> Figure:
    """A verse held out, short enough to be read, beside itself and beside its neighbour in the other translation."""
    _, held_out, vocabulary = parts
    both = next(both for both in zip(held_out[::2], held_out[1::2], strict=True) if _readable(*both))
    batch = data.encode(list(both), vocabulary)
    chances = jax.nn.sigmoid(_logits(model, batch.left, batch.right))
    matches = np.asarray(model.match(batch.left, batch.right))
    figure = Figure(figsize=(15, 7), layout="constrained")
    grid = GridSpec(1, 2, figure)
    for n, (pair, match, chance) in enumerate(zip(both, matches, chances, strict=True)):
        rows, columns = _labels(model, pair.left), _labels(model, pair.right)
        title = f"{'one verse' if pair.same else 'two verses'}; the model: {chance:.0%} one verse"
        panel = figure.add_subfigure(grid[n])
        names = {"ylabel": "King James", "xlabel": "American Standard", "scale": "match"}
        viz.show_weights(match[: len(rows), : len(columns)], rows, columns, **names, title=title, figure=panel)
    return figure


def _readable(*pairs: data.Pair) -> bool:
    return all(8 <= len(verse) <= DRAWN for pair in pairs for verse in (pair.left, pair.right))


def _labels(model: Reader, verse: data.Words) -> list[str]:
    """The words, or the words below each column of the convolution."""
    if not model.columns:
        return list(verse)
    reach = model.width - 1
    return [" ".join(verse[max(n - reach, 0) : n + 1]) for n in range(len(verse) + reach)]
