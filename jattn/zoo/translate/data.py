"""English sentences and their German translations, from a dictionary or from the messages of a program, in pieces.

A pair is held out by the hash of its English, so that more pairs, or their order, move none across.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

import jax
import numpy as np
from babel.messages.pofile import read_po
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from jattn.zoo._archives import ARCHIVES, read
from jattn.zoo._errors import UsageError
from jattn.zoo._text import unescaped

LONGEST: Final = 64  # characters of either side; longer ones are left out
HELD_OUT: Final = 0.1  # the share of the pairs that training does not see
EXAMINED: Final = 500  # of those held out, at most
PIECES: Final = 8000  # whole words where they are common, at most so many
TOKENS: Final = 24  # of either side; the one sentence in a hundred that has more is cut off
PAD, START, END, UNKNOWN = range(4)

PARTS: Final = (
    *(f"contrib/{name}" for name in ("admin", "admindocs", "auth", "contenttypes", "flatpages", "gis", "humanize")),
    *(f"contrib/{name}" for name in ("postgres", "redirects", "sessions", "sites")),
)
CATALOGUES: Final = (
    *(f"django/{part}/locale/de/LC_MESSAGES/django.po" for part in ("conf", *PARTS)),
    "django/contrib/admin/locale/de/LC_MESSAGES/djangojs.po",
)

Array = np.ndarray | jax.Array


class Pair(NamedTuple):
    english: str
    german: str


class Batch(NamedTuple):
    """source: [b, TOKENS], `PAD` after the end.  length: [b], of the source.  target: [b, TOKENS], with an `END` and
    `PAD` after it.  seed: of the step's dropout."""

    source: Array
    length: Array
    target: Array
    seed: Array


def messages() -> list[Pair]:
    """The messages of Django and their translations.

    Raises:
        UsageError: the archive cannot be had.
    """
    return fitting(pair for name in CATALOGUES for pair in parse_catalogue(read(ARCHIVES["django"], name)))


def dictionary(path: Path) -> list[Pair]:
    """The sentences of a dictionary in the format of Ding.

    Raises:
        UsageError: the file cannot be read, or holds too few.
    """
    try:
        pairs = fitting(parse_dictionary(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--dictionary must be the file de-en of Debian's trans-de-en, got {path} ({error})"
        ) from error
    if len(pairs) < 100:
        raise UsageError(f"--dictionary must be a file de-en of trans-de-en, {path} has {len(pairs)} sentences")
    return pairs


def parse_catalogue(po: bytes) -> list[Pair]:
    """A gettext catalogue; a message with plural forms is several pairs."""
    pairs = []
    for message in read_po(io.BytesIO(po)):
        if message.id and not message.fuzzy:
            sides = (side if isinstance(side, tuple) else (side,) for side in (message.id, message.string))
            pairs += [Pair(*pair) for pair in zip(*sides, strict=False)]
    return pairs


def parse_dictionary(text: str) -> list[Pair]:
    """Lines `German | German :: English | English`: the parts that are sentences on both sides.  What stands in
    brackets is about the sentence and no part of it; parts with a semicolon are several translations."""
    pairs = []
    for line in text.splitlines():
        german, colons, english = line.partition(" :: ")
        sides = [[_BRACKETS.sub("", part).strip() for part in side.split("|")] for side in (english, german)]
        if colons and not line.startswith("#") and len(sides[0]) == len(sides[1]):
            pairs += [Pair(*pair) for pair in zip(*sides, strict=True) if all(map(_SENTENCE.fullmatch, pair))]
    return pairs


_BRACKETS = re.compile(r"\s*(\[[^]]*\]|\{[^}]*\}|\([^)]*\)|/[^/]*/)")
_SENTENCE = re.compile(r"[^ ;/]+ [^ ;/]+ [^;/]*[.!?]")


def fitting(pairs: Iterable[Pair]) -> list[Pair]:
    """Without those that are too long or empty, the first for each English sentence, white space as single spaces and
    what was written for web pages as it is read there."""
    german_of: dict[str, str] = {}
    for pair in pairs:
        english, german = (" ".join(unescaped(side).split()) for side in pair)
        if 1 <= len(english) <= LONGEST and 1 <= len(german) < LONGEST:
            german_of.setdefault(english, german)
    return [Pair(*item) for item in german_of.items()]


def split(pairs: list[Pair]) -> tuple[list[Pair], list[Pair]]:
    """What is learnt from and what is held out, up to `EXAMINED` in the order of their hashes."""
    place = lambda pair: int.from_bytes(hashlib.sha256(pair.english.encode()).digest()[:8], "big") / 2**64
    ordered = sorted(pairs, key=place)
    held_out = [pair for pair in ordered if place(pair) < HELD_OUT]
    return ordered[len(held_out) :], held_out[:EXAMINED]


def fingerprint(pairs: list[Pair]) -> str:
    return hashlib.sha256(repr((split(pairs), TOKENS)).encode()).hexdigest()[:8]


def pieces(pairs: list[Pair], most: int = PIECES) -> SentencePieceProcessor:
    """The words and pieces of words, at most so many, that both sides of the pairs are best written in (Kudo 2018)."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([side for pair in pairs for side in pair]),
        model_writer=model,
        vocab_size=most,
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="identity",
        pad_id=PAD,
        bos_id=START,
        eos_id=END,
        unk_id=UNKNOWN,
        unk_surface=" <unk> ",  # its own is made of question marks
        num_threads=1,
        minloglevel=2,
    )
    return SentencePieceProcessor(model_proto=model.getvalue())


def encode(pairs: list[Pair], vocabulary: SentencePieceProcessor, seed: int = 0) -> Batch:
    read = [vocabulary.encode(pair.english)[:TOKENS] for pair in pairs]
    written = [[*vocabulary.encode(pair.german), END][:TOKENS] for pair in pairs]
    source, target = (np.full((len(pairs), TOKENS), PAD, np.int32) for _ in range(2))
    for array, sentences in ((source, read), (target, written)):
        for row, tokens in zip(array, sentences, strict=True):
            row[: len(tokens)] = tokens
    return Batch(source, np.array([*map(len, read)], np.int32), target, np.asarray(seed, np.uint32))


def before_end(target: Array) -> list[int]:
    tokens = np.asarray(target).tolist()
    return tokens[: tokens.index(END)] if END in tokens else tokens


def decode(target: Array, vocabulary: SentencePieceProcessor) -> str:
    """The text before `END`."""
    return vocabulary.decode(before_end(target))


def training_batch(pairs: list[Pair], vocabulary: SentencePieceProcessor, seed: int, step: int, size: int) -> Batch:
    """A pure function of its arguments."""
    random = np.random.default_rng([seed, step])
    chosen = random.integers(len(pairs), size=size)
    return encode([pairs[n] for n in chosen], vocabulary, int(random.integers(2**32)))
