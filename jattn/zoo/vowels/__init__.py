"""Who of nine speakers said two vowels: an LSTM, and three ways to sum up what it has heard."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jattn.zoo._task import Task

DATA = "JapaneseVowels (Kudo et al. 1999), through aeon: 270 utterances to learn from, 370 to be examined on"
ABOUT = "Tells which of nine men said /ae/, from 7 to 29 steps of 12 cepstrum coefficients."
STEPS = 800
ARCHIVES = ("aeon",)
SUMMARIES = ("attention", "mean", "last")
VARIANTS: dict[str, tuple[str, ...]] = {
    "attention over steps": (),
    "mean over steps": ("--summary", "mean"),
    "last hidden state": ("--summary", "last"),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--summary", choices=SUMMARIES, default="attention", help="how the LSTM's states become one")


def build(options: argparse.Namespace) -> Task:
    from jattn.zoo.vowels.task import vowels

    return vowels(options.summary, options.seed, options.implementation)
