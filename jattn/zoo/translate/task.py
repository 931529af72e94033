"""Translation as a task: chrF of what is written for sentences never learnt from, and pictures of the alignments."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from sentencepiece import SentencePieceProcessor

from jattn import viz
from jattn.zoo._average import Averaged, averaging
from jattn.zoo._optimizer import adam
from jattn.zoo._task import Task
from jattn.zoo.translate import data
from jattn.zoo.translate.chrf import chrf
from jattn.zoo.translate.model import Sizes, Translator

DRAWN = 4
SMOOTHING = 0.1


def translate(
    pairs: list[data.Pair],
    name: str,
    kv_heads: int,
    seed: int,
    implementation: str | None,
    batch: int = 32,
    sizes: Sizes | None = None,
    most: int = data.PIECES,
) -> Task:
    """The task on these pairs, which have a name.

    The baseline is to leave the English as it is: names, numbers and what stands between % ( ) are right already.
    """
    sizes = sizes or Sizes(kv_heads=kv_heads)
    learnt, held_out = data.split(pairs)
    vocabulary = data.pieces(learnt, most)
    return Task(
        settings={
            "task": "translate",
            "seed": seed,
            "batch": batch,
            **dataclasses.asdict(sizes),
            "most": most,
            "data": data.fingerprint(pairs),
        },
        model=Averaged(Translator(vocabulary.get_piece_size(), sizes, implementation, nnx.Rngs(seed))),
        optimizer=averaging(adam(2e-3), keep=0.99),
        batch=lambda step: data.training_batch(learnt, vocabulary, seed, step, batch),
        loss=_loss,
        evaluate=lambda model: chrf(
            _translations(model.mean, held_out, vocabulary), [pair.german for pair in held_out]
        ),
        metric=f"held-out chrF2 on {name}",
        pictures=lambda model: {"alignments.png": _alignments(model.mean, held_out, vocabulary)},
        baseline=("the English itself", chrf(*zip(*held_out, strict=True))),
        written=lambda model: _examples(model.mean, held_out[:DRAWN], vocabulary),
    )


def _loss(model: Averaged, batch: data.Batch) -> jax.Array:
    """Nats a token, of those that are no padding; a share of each goes to all tokens alike (Szegedy et al. 2016)."""
    logits = model.now(*batch)
    logs = jax.nn.log_softmax(logits)
    right = jnp.take_along_axis(logs, batch.target[..., None], -1)[..., 0]
    losses = (SMOOTHING - 1) * right - SMOOTHING * jnp.mean(logs, -1)
    return jnp.average(losses, weights=batch.target != data.PAD)


@nnx.jit
def _write(model: Translator, source: data.Array, length: data.Array) -> jax.Array:
    return model.greedy(source, length, data.TOKENS)


@nnx.jit
def _align(model: Translator, source: data.Array, length: data.Array, target: data.Array) -> jax.Array:
    return model.alignment(source, length, target)


def _translations(model: Translator, pairs: list[data.Pair], vocabulary: SentencePieceProcessor) -> list[str]:
    batch = data.encode(pairs, vocabulary)
    return [data.decode(row, vocabulary) for row in np.asarray(_write(model, batch.source, batch.length))]


def _examples(model: Translator, pairs: list[data.Pair], vocabulary: SentencePieceProcessor) -> str:
    """A line for each of some sentences held out."""
    return "\n".join(
        f"{pair.english} \N{RIGHTWARDS ARROW} {text} (wanted: {pair.german})"
        for pair, text in zip(pairs, _translations(model, pairs, vocabulary), strict=True)
    )


def _alignments(model: Translator, held_out: list[data.Pair], vocabulary: SentencePieceProcessor) -> Figure:
    """Sentences held out, against what the model writes: the last layer, the mean of its heads."""
    some = held_out[:DRAWN]
    batch = data.encode(some, vocabulary)
    written = _write(model, batch.source, batch.length)
    weights = np.asarray(_align(model, batch.source, batch.length, written))[-1]
    figure = Figure(figsize=(16, 13), layout="constrained")
    grid = GridSpec(2, 2, figure)
    rows = zip(some, weights, batch.source, batch.length, np.asarray(written), strict=True)
    for place, (pair, row, source, length, target) in enumerate(rows):
        text = data.decode(target, vocabulary)
        shown = f"{pair.english}\n\N{RIGHTWARDS ARROW} {text}\n(wanted: {pair.german})"
        read = _labels(source[:length].tolist(), vocabulary)
        labels = [*_labels(data.before_end(target), vocabulary), "end"][: data.TOKENS]
        part = row[:, : len(labels), : len(read)]
        viz.show_alignment(part, read, labels, title=shown, figure=figure.add_subfigure(grid[place]))
    return figure


def _labels(tokens: list[int], vocabulary: SentencePieceProcessor) -> list[str]:
    """Words and their beginnings as they are, what continues a word after a dot."""
    pieces = (vocabulary.id_to_piece(token) for token in tokens)
    return [piece[1:] or "_" if piece[0] == _SPACE else f"\N{MIDDLE DOT}{piece}" for piece in pieces]


_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # with which a piece begins that begins a word
