"""The standard library's own source as bytes, and how well counting would guess them."""

from __future__ import annotations

import functools
import hashlib
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import jax
import numpy as np

Array = np.ndarray | jax.Array  # of the one kind on the host, of the other in a compiled function

HELD_OUT_EVERY: Final = 20
LEAVE_OUT: Final = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
START: Final = 0  # comes before each file; no source has this byte
BYTES: Final = 256


class Corpus(NamedTuple):
    """Files one after the other, each after a `START`: what is learnt from and what is held out, uint8."""

    training: np.ndarray
    held_out: np.ndarray


def library() -> list[Path]:
    """The files, in the order of their paths.  Tests, and what describes the build of this Python, are left out."""
    folder = Path(sysconfig.get_path("stdlib"))
    files = sorted(folder.rglob("*.py"), key=lambda path: path.relative_to(folder).parts)
    return [
        path
        for path in files
        if not LEAVE_OUT.intersection(path.relative_to(folder).parts) and not path.name.startswith("_sysconfigdata")
    ]


def divide(texts: Sequence[bytes]) -> Corpus:
    """Whole files held out, every `HELD_OUT_EVERY`-th of those with anything in them."""
    texts = [bytes([START]) + text for text in texts if text]
    held_out = texts[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    training = [text for n, text in enumerate(texts) if (n + 1) % HELD_OUT_EVERY]
    return Corpus(*(np.frombuffer(b"".join(part), np.uint8) for part in (training, held_out)))


@functools.cache
def corpus() -> Corpus:
    return divide([path.read_bytes() for path in library()])


def fingerprint(corpus: Corpus) -> str:
    """Changes where another Python brings other source."""
    return hashlib.sha256(b"".join(part.tobytes() for part in corpus)).hexdigest()[:8]


def training_batch(source: np.ndarray, seed: int, step: int, size: int, length: int) -> np.ndarray:
    """`[size, length + 1]` int32, each byte with the next: pieces from anywhere; a pure function of its arguments."""
    first = np.random.default_rng([seed, step]).integers(len(source) - length, size=size)
    return source[first[:, None] + np.arange(length + 1)].astype(np.int32)


def held_out_batch(source: np.ndarray, most: int, length: int) -> np.ndarray:
    """`[n, length + 1]` int32: up to `most` bytes in pieces of `length`, spread evenly; the same for every seed."""
    pieces = max((len(source) - 1) // length, 1)
    chosen = np.unique(np.linspace(0, pieces - 1, max(min(pieces, most // length), 1)).astype(int))
    return source[chosen[:, None] * length + np.arange(length + 1)].astype(np.int32)


def trigram_bits(training: np.ndarray, pieces: np.ndarray) -> float:
    """Bits a byte of all but the first of each piece `[n, length + 1]`, guessed from the two bytes before.

    Counts of training, interpolated with those of shorter contexts (Witten & Bell 1991): with n(c) bytes seen after a
    context c, k(c) different ones,  p(x | c) = (n(c, x) + k(c) p(x | c without its first)) / (n(c) + k(c)).
    """
    source, probability = training.astype(np.int64), np.full(pieces[:, 1:].shape, 1 / BYTES)
    padded = np.pad(pieces.astype(np.int64), ((0, 0), (1, 0)), constant_values=START)
    for order in range(3):
        code = functools.partial(_code, order=order)
        counts = np.bincount(code(source), minlength=BYTES ** (order + 1)).reshape(-1, BYTES)
        asked = code(padded)[..., 2 - order :]
        seen, different = counts.sum(-1)[asked // BYTES], (counts > 0).sum(-1)[asked // BYTES]
        known = counts.reshape(-1)[asked] + different * probability
        probability = np.where(seen > 0, known / np.maximum(seen + different, 1), probability)
    return float(-np.log2(probability).mean())


def _code(x: np.ndarray, order: int) -> np.ndarray:
    """Each byte and the `order` bytes before it, as one number."""
    return np.sum([x[..., order - n : x.shape[-1] - n] * BYTES**n for n in range(order + 1)], axis=0)
