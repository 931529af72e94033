"""Utterances of two vowels by nine speakers, as arrays: the split into training and test is the data's own."""

from __future__ import annotations

import functools
from typing import Final, NamedTuple

import jax
import numpy as np

from jattn.zoo._archives import ARCHIVES, read

SPEAKERS: Final = 9
COEFFICIENTS: Final = 12
_MEMBER = "aeon/datasets/data/JapaneseVowels/JapaneseVowels_{}.ts"

Array = np.ndarray | jax.Array  # of the one kind on the host, of the other in a compiled function


class Utterances(NamedTuple):
    """series: [b, s, 12], 0 after the end.  length: [b], in steps.  speaker: [b], from 0."""

    series: Array
    length: Array
    speaker: Array


def parse(text: str) -> Utterances:
    """What a file of the .ts format holds: a line an utterance, `x,x,x:x,x,x: .. :speaker`, a part a coefficient."""
    lines = text[text.index("@data") :].split()[1:]
    parts = [line.split(":") for line in lines]
    each = [np.array([x.split(",") for x in coefficients], np.float32).T for *coefficients, _ in parts]
    series = np.zeros((len(each), max(map(len, each)), each[0].shape[1]), np.float32)
    for row, steps in zip(series, each, strict=True):
        row[: len(steps)] = steps
    lengths = np.array([len(steps) for steps in each], np.int32)
    return Utterances(series, lengths, np.array([int(speaker) - 1 for *_, speaker in parts], np.int32))


class Parts(NamedTuple):
    """What is learnt from, and what is examined on."""

    training: Utterances
    held_out: Utterances


@functools.cache
def parts() -> Parts:
    train, test = (parse(read(ARCHIVES["aeon"], _MEMBER.format(part)).decode()) for part in ("TRAIN", "TEST"))
    return standardised(train, test)


def training_batch(training: Utterances, seed: int, step: int, size: int, noise: float) -> Utterances:
    """A pure function of its arguments: `size` utterances drawn at random, with noise of that standard deviation."""
    random = np.random.default_rng([seed, step])
    chosen = random.integers(len(training.length), size=size)
    series, length, speaker = (x[chosen] for x in training)
    return Utterances(series + noise * random.standard_normal(series.shape, np.float32), length, speaker)


def standardised(train: Utterances, test: Utterances) -> Parts:
    """Each coefficient with mean 0 and variance 1 over the steps of the training utterances."""
    steps = train.series[inside(train)]
    scaled = lambda x: np.where(inside(x)[..., None], (x.series - steps.mean(axis=0)) / steps.std(axis=0), 0)
    return Parts(*(x._replace(series=scaled(x)) for x in (train, test)))


def inside(data: Utterances) -> Array:
    """[b, s]: True where a step is real."""
    return np.arange(data.series.shape[1]) < data.length[:, None]
