"""English sentences and their German translations, from a dictionary or from the messages of a program, as characters.

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

from jattn.zoo import _archives
from jattn.zoo._errors import UsageError

LONGEST: Final = 64  # characters of either side; longer ones are left out
HELD_OUT: Final = 0.1  # of the pairs
EXAMINED: Final = 500  # of those held out, at most
PAD, START, END, UNKNOWN, FIRST = range(5)  # tokens; from FIRST on, the characters of an alphabet

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
    """source: [b, s] tokens, `PAD` after the end.  length: [b], of the source.  target: [b, t] tokens, the last of a
    sentence `END`, `PAD` after it.  seed: of the step's dropout."""

    source: Array
    length: Array
    target: Array
    seed: Array


def messages() -> list[Pair]:
    """Those of Django.

    Raises:
        UsageError: the archive cannot be had.
    """
    return fitting(pair for name in CATALOGUES for pair in parse_catalogue(_archives.read("django", name)))


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
        german, found, english = line.partition(" :: ")
        sides = [[_BRACKETS.sub("", part).strip() for part in side.split("|")] for side in (english, german)]
        if found and not line.startswith("#") and len(sides[0]) == len(sides[1]):
            pairs += [Pair(*pair) for pair in zip(*sides, strict=True) if all(map(_SENTENCE.fullmatch, pair))]
    return pairs


_BRACKETS = re.compile(r"\s*(\[[^]]*\]|\{[^}]*\}|\([^)]*\)|/[^/]*/)")
_SENTENCE = re.compile(r"[^ ;/]+ [^ ;/]+ [^;/]*[.!?]")


def fitting(pairs: Iterable[Pair]) -> list[Pair]:
    """Without those that are too long or empty, the first for each English sentence, white space as single spaces."""
    found: dict[str, str] = {}
    for pair in pairs:
        english, german = (" ".join(side.split()) for side in pair)
        if 1 <= len(english) <= LONGEST and 1 <= len(german) < LONGEST:
            found.setdefault(english, german)
    return [Pair(*item) for item in found.items()]


def split(pairs: list[Pair]) -> tuple[list[Pair], list[Pair]]:
    """What is learnt from and what is held out, up to `EXAMINED` in the order of their hashes."""
    place = lambda pair: int.from_bytes(hashlib.sha256(pair.english.encode()).digest()[:8], "big") / 2**64
    ordered = sorted(pairs, key=place)
    held_out = [pair for pair in ordered if place(pair) < HELD_OUT]
    return ordered[len(held_out) :], held_out[:EXAMINED]


def fingerprint(pairs: list[Pair]) -> str:
    return hashlib.sha256(repr((split(pairs), LONGEST)).encode()).hexdigest()[:8]


def alphabet(pairs: list[Pair]) -> str:
    return "".join(sorted({*"".join(side for pair in pairs for side in pair)}))


def encode(pairs: list[Pair], characters: str, seed: int = 0) -> Batch:
    tokens = {character: FIRST + n for n, character in enumerate(characters)}
    source, target = (np.full((len(pairs), LONGEST), PAD, np.int32) for _ in range(2))
    for n, (english, german) in enumerate(pairs):
        source[n, : len(english)] = [tokens.get(character, UNKNOWN) for character in english]
        target[n, : len(german) + 1] = [*(tokens.get(character, UNKNOWN) for character in german), END]
    length = np.array([len(pair.english) for pair in pairs], np.int32)
    return Batch(source, length, target, np.asarray(seed, np.uint32))


def decode(target: Array, characters: str) -> str:
    """The characters before `END`."""
    tokens = np.asarray(target).tolist()
    tokens = tokens[: tokens.index(END)] if END in tokens else tokens
    return "".join(characters[token - FIRST] if token >= FIRST else "\N{REPLACEMENT CHARACTER}" for token in tokens)


def training_batch(pairs: list[Pair], characters: str, seed: int, step: int, size: int) -> Batch:
    """A pure function of its arguments."""
    random = np.random.default_rng([seed, step])
    chosen = random.integers(len(pairs), size=size)
    return encode([pairs[n] for n in chosen], characters, int(random.integers(2**32)))
