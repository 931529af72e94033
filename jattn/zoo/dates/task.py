"""The dates as a task: the model, its loss, exact match on days never learnt from, and pictures of the alignments."""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any

import jax
import numpy as np
from flax import nnx
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec

from jattn import normalizers, viz
from jattn.nn.seq2seq import ScoreName
from jattn.zoo._optimizer import adam
from jattn.zoo._task import Task
from jattn.zoo.dates import data
from jattn.zoo.dates.losses import LOSSES, Example
from jattn.zoo.dates.model import Sizes, Translator

DRAWN = ("en", "fr", "ru", "el")  # the font that comes with matplotlib has no Devanagari and no Kanji


def dates(
    score: ScoreName = "dot",
    attention: str = "soft",
    summary: str = "dynamic",
    *,
    seed: int = 0,
    implementation: str | None = None,
    batch: int = 64,
    sizes: Sizes | None = None,
) -> Task:
    """The task for one score, one kind of attention (of `LOSSES`) and one summary, "dynamic" or "static".

    One head, so that there is one alignment to read; four for `concat`, whose query adds the same to every key, which
    the softmax cancels: each of its heads reads the same place for all of the output.
    """
    sizes = sizes or (Sizes(heads=4, width=32) if score == "concat" else Sizes())
    model = Translator(
        data.alphabet().size, sizes, score=score, static=summary == "static", baseline=attention == "reinforce",
        implementation=implementation, rngs=nnx.Rngs(seed),
    )  # fmt: skip
    read = {} if attention == "soft" else {"normalizer": normalizers.hard()}

    def batch_of(step: int) -> Example:
        return Example(data.training_batch(seed, step, batch), jax.random.fold_in(jax.random.key(seed), step))

    return Task(
        settings={
            "task": "dates",
            "score": score,
            "attention": attention,
            "summary": summary,
            "seed": seed,
            "batch": batch,
            **dataclasses.asdict(sizes),
            "data": data.fingerprint(),
        },
        model=model,
        optimizer=adam(3e-3),
        batch=batch_of,
        loss=LOSSES[attention],
        evaluate=lambda model: _exact_match(model, read),
        metric="held-out exact match",
        pictures=lambda model: {"alignments.png": _alignments(model, read)},
    )


@nnx.jit
def _write(model: Translator, source: data.Array, length: data.Array, read: dict[str, Any]) -> jax.Array:
    return model.greedy(source, length, **read)


@nnx.jit
def _align(
    model: Translator, source: data.Array, length: data.Array, target: data.Array, read: dict[str, Any]
) -> jax.Array:
    return model.alignment(source, length, target, **read)


def _exact_match(model: Translator, read: dict[str, Any]) -> float:
    batch = data.held_out_batch()
    return float(np.mean(np.all(_write(model, batch.source, batch.length, read) == batch.target, axis=-1)))


def _alignments(model: Translator, read: dict[str, Any]) -> Figure:
    """Four days held out, each in the longest format of its language, against what the model writes."""
    days = [datetime.date.fromordinal(int(day)) for day in data.split()[1][: len(DRAWN)]]
    texts = [
        max((data.write(day, language, pattern) for pattern in data.patterns(language)), key=len)
        for day, language in zip(days, DRAWN, strict=True)
    ]
    source, length, _ = data.encode(days, list(DRAWN), texts)
    written = _write(model, source, length, read)
    weights = _align(model, source, length, written, read)
    figure = Figure(figsize=(15, 9), layout="constrained")
    grid = GridSpec(2, 2, figure)
    panels = [figure.add_subfigure(grid[place]) for place in range(len(DRAWN))]
    for panel, language, text, row, target in zip(panels, DRAWN, texts, weights, np.asarray(written), strict=True):
        tokens, iso = [language, *text], data.decode(target)
        title = f"{text} \N{RIGHTWARDS ARROW} {iso}"
        viz.show_alignment(row[..., : len(tokens)], tokens, iso, title=title, figure=panel)
    return figure
