"""Dates written in 16 languages, by the formats of Unicode CLDR, and their ISO form, as arrays of characters.

A source is a language tag, one token, and then the characters.  The tag is what makes the task well posed: 3/9/2026 is
in March in English and in September in Spanish, and no reader could know without being told the language.  Some short
formats have years of two digits; the hundred years from 1950 to 2049 make those unambiguous too.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
from typing import Final, NamedTuple

import jax
import numpy as np
from babel import Locale
from babel.dates import DateTimePattern, get_date_format

LANGUAGES = ("en", "de", "fr", "es", "it", "pt", "nl", "pl", "sv", "fi", "tr", "vi", "ru", "el", "hi", "ja")
FORMATS: Final = ("short", "medium", "long", "full")
SKELETONS: Final = ("yMd", "yMMMEd")
FIRST, LAST = datetime.date(1950, 1, 1), datetime.date(2049, 12, 31)
HELD_OUT = 2000
ISO, START = "0123456789-", 11  # the characters of a target; START comes before the first one


Array = np.ndarray | jax.Array  # of the one kind on the host, of the other in a compiled function


class Batch(NamedTuple):
    """source: [b, s] tokens, 0 after the end.  length: [b], of the source.  target: [b, t] indices into `ISO`."""

    source: Array
    length: Array
    target: Array


class Alphabet(NamedTuple):
    """Tokens: 0 is padding, then the languages, then `characters`.  length: of the longest source, with its tag."""

    characters: str
    length: int

    @property
    def size(self) -> int:
        return 1 + len(LANGUAGES) + len(self.characters)


@functools.cache
def patterns(language: str) -> tuple[DateTimePattern, ...]:
    """The different ways in which CLDR writes a date in a language, e.g. d/M/yy or EEEE d MMMM y."""
    locale = Locale.parse(language)
    formats = [get_date_format(name, locale) for name in FORMATS]
    skeletons = [locale.datetime_skeletons[name] for name in SKELETONS]
    return tuple({pattern.pattern: pattern for pattern in formats + skeletons}.values())


def write(date: datetime.date, language: str, pattern: DateTimePattern) -> str:
    return pattern.apply(date, Locale.parse(language))


@functools.cache
def alphabet() -> Alphabet:
    """A leap year has every month with every day of the week and with one and two digits, so it has all there is."""
    days = [datetime.date(2000, 1, 1) + datetime.timedelta(day) for day in range(366)]
    texts = [write(day, language, pattern) for language in LANGUAGES for pattern in patterns(language) for day in days]
    return Alphabet("".join(sorted({*ISO}.union(*texts))), 1 + max(map(len, texts)))


def fingerprint() -> str:
    """Changes where another version of babel would write otherwise, or another split would be learnt from."""
    formats = [[pattern.pattern for pattern in patterns(language)] for language in LANGUAGES]
    return hashlib.sha256(repr((LANGUAGES, formats, alphabet(), FIRST, LAST, HELD_OUT)).encode()).hexdigest()[:8]


@functools.cache
def split() -> tuple[np.ndarray, np.ndarray]:
    """The days, as proleptic ordinals, to learn from and those held out: in no language is one of those learnt from."""
    days = np.random.default_rng(0).permutation(np.arange(FIRST.toordinal(), LAST.toordinal() + 1))
    return days[HELD_OUT:], days[:HELD_OUT]


def training_batch(seed: int, step: int, size: int) -> Batch:
    """A pure function of its arguments: a random day, language and pattern for each of `size` examples."""
    random = np.random.default_rng([seed, step])
    return _draw(random.choice(split()[0], size), random)


def held_out_batch(size: int = HELD_OUT) -> Batch:
    """The first `size` of the days held out, each in one language and pattern; the same for every seed."""
    return _draw(split()[1][:size], np.random.default_rng(1))


def encode(dates: list[datetime.date], languages: list[str], texts: list[str]) -> Batch:
    characters, longest = alphabet()
    tokens = {character: 1 + len(LANGUAGES) + index for index, character in enumerate(characters)}
    source = np.zeros((len(texts), longest), np.int32)
    for row, language, text in zip(source, languages, texts, strict=True):
        row[: 1 + len(text)] = [1 + LANGUAGES.index(language), *(tokens[character] for character in text)]
    target = np.array([[ISO.index(character) for character in date.isoformat()] for date in dates], np.int32)
    return Batch(source, np.array([1 + len(text) for text in texts], np.int32), target)


def decode(target: Array) -> str:
    return "".join(ISO[index] for index in target)


def _draw(days: np.ndarray, random: np.random.Generator) -> Batch:
    dates = [datetime.date.fromordinal(int(day)) for day in days]
    languages = [LANGUAGES[index] for index in random.integers(len(LANGUAGES), size=len(days))]
    choices = [patterns(language) for language in languages]
    chosen = [choice[int(part * len(choice))] for choice, part in zip(choices, random.random(len(days)), strict=True)]
    return encode(dates, languages, [write(*each) for each in zip(dates, languages, chosen, strict=True)])
