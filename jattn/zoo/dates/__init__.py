"""Dates as people write them in 16 languages, to ISO form: a sequence-to-sequence model whose attention can be read."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jattn.zoo._task import Task

DATA = "the date formats of Unicode CLDR, through babel: 16 languages, every day from 1950 to 2049"
ABOUT = "Reads a date as people write it and writes it as YYYY-MM-DD, letter by letter."
STEPS = 1500
ARCHIVES = ()
SCORES = ("dot", "general", "cosine", "concat", "additive")
ATTENTION = ("soft", "argmax", "straight-through", "gumbel", "reinforce")
SUMMARIES = ("dynamic", "static")
VARIANTS: dict[str, tuple[str, ...]] = {
    "dot score, soft attention, dynamic summary": (),
    **{f"{score} score": ("--score", score) for score in SCORES[1:]},
    **{f"hard attention, {kind}": ("--attention", kind) for kind in ATTENTION[1:]},
    "static summary": ("--summary", "static"),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--score", choices=SCORES, default="dot", help="how a query and a key are compared")
    parser.add_argument(
        "--attention",
        choices=ATTENTION,
        default="soft",
        help="soft reads a mean of all places; the others read the best place alone and are ways to learn which",
    )
    parser.add_argument(
        "--summary",
        choices=SUMMARIES,
        default="dynamic",
        help="of the source: dynamic has one for each character, static one for all of them",
    )


def build(options: argparse.Namespace) -> Task:
    from jattn.zoo.dates.task import dates

    return dates(
        options.score, options.attention, options.summary, seed=options.seed, implementation=options.implementation
    )
