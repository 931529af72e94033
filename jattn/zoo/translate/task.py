"""Translation as a task: chrF of what is written for sentences never learnt from, and pictures of the alignments."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec

from jattn import viz
from jattn.zoo._task import Task
from jattn.zoo.translate import data
from jattn.zoo.translate.chrf import chrf
from jattn.zoo.translate.model import Sizes, Translator

DRAWN = 4


def translate(
    pairs: list[data.Pair],
    name: str,
    kv_heads: int,
    seed: int,
    implementation: str | None,
    batch: int = 32,
    sizes: Sizes | None = None,
) -> Task:
    """The task on these pairs, which have a name.

    The baseline is to leave the English as it is: names, numbers and what stands between % ( ) are right already.
    """
    sizes = sizes or Sizes(kv_heads=kv_heads)
    learnt, held_out = data.split(pairs)
    characters = data.alphabet(learnt)
    return Task(
        settings={
            "task": "translate",
            "seed": seed,
            "batch": batch,
            **dataclasses.asdict(sizes),
            "data": data.fingerprint(pairs),
        },
        model=Translator(data.FIRST + len(characters), sizes, implementation, nnx.Rngs(seed)),
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(_learning_rate)),
        batch=lambda step: data.training_batch(learnt, characters, seed, step, batch),
        loss=_loss,
        evaluate=lambda model: chrf(_translations(model, held_out, characters), [pair.german for pair in held_out]),
        metric=f"held-out chrF2 on {name}",
        pictures=lambda model: {"alignments.png": _alignments(model, held_out, characters)},
        baseline=("the English itself", chrf(*zip(*held_out, strict=True))),
    )


def _learning_rate(step: Any) -> jax.Array:
    """Rises for 100 steps, falls as 1/sqrt(step) after 300.  No part for the length of the run: any run can go on."""
    return 2e-3 * jnp.minimum((step + 1) / 100, jnp.sqrt(300 / jnp.maximum(step, 300)))


def _loss(model: Translator, batch: data.Batch) -> jax.Array:
    """Nats a token, of those that are no padding."""
    losses = optax.softmax_cross_entropy_with_integer_labels(model(*batch), batch.target)
    return jnp.average(losses, weights=batch.target != data.PAD)


@nnx.jit
def _write(model: Translator, source: data.Array, length: data.Array) -> jax.Array:
    return model.greedy(source, length, data.LONGEST)


@nnx.jit
def _align(model: Translator, source: data.Array, length: data.Array, target: data.Array) -> jax.Array:
    return model.alignment(source, length, target)


def _translations(model: Translator, pairs: list[data.Pair], characters: str) -> list[str]:
    batch = data.encode(pairs, characters)
    return [data.decode(row, characters) for row in np.asarray(_write(model, batch.source, batch.length))]


def _alignments(model: Translator, held_out: list[data.Pair], characters: str) -> Figure:
    """Sentences held out, against what the model writes: the last layer, the mean of its heads."""
    some = [pair for pair in held_out if 12 <= len(pair.english) <= 40][:DRAWN] or held_out[:DRAWN]
    batch = data.encode(some, characters)
    written = _write(model, batch.source, batch.length)
    weights = np.asarray(_align(model, batch.source, batch.length, written))[-1]
    figure = Figure(figsize=(16, 13), layout="constrained")
    grid = GridSpec(2, 2, figure)
    for place, (pair, row, tokens) in enumerate(zip(some, weights, np.asarray(written), strict=True)):
        text = data.decode(tokens, characters)
        shown = f"{pair.english} \N{RIGHTWARDS ARROW} {text}\n(wanted: {pair.german})"
        target = [*text, "end"][: data.LONGEST]
        part = row[:, : len(target), : len(pair.english)]
        viz.show_alignment(part, pair.english, target, title=shown, figure=figure.add_subfigure(grid[place]))
    return figure
