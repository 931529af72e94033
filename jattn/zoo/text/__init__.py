"""The Python standard library's own source, a byte at a time: a Transformer language model that can write some more."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from jattn.zoo import _mesh

if TYPE_CHECKING:
    from jattn.zoo._task import Task

DATA = "the source of the standard library, as packaged with the Python that runs this; every 20th file is held out"
ABOUT = "Guesses the next byte of Python source: causal, sliding-window, rotary and ALiBi attention."
STEPS = 600
ARCHIVES = ()
VARIANTS: dict[str, tuple[str, ...]] = {
    "rotary": (),
    "rotary, sliding window of 32": ("--window", "32"),
    "ALiBi": ("--positions", "alibi"),
    "no positions": ("--positions", "none"),
}
POSITIONS = ("rotary", "alibi", "none")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--length", type=_count, default=512, help="bytes of context; 8192 fits in a laptop's memory")
    parser.add_argument("--window", type=_count, help="how many bytes back a layer looks; None: all")
    parser.add_argument("--positions", choices=POSITIONS, default="rotary", help="what tells a layer where bytes are")
    parser.add_argument("--sequences", type=_count, help="of a step; None: as many as have 2048 bytes, or one")
    _mesh.add_options(parser)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 2**20:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to {2**20}, got {text!r}")
    return int(text)


def build(options: argparse.Namespace) -> Task:
    from jattn.zoo.text.task import text

    return text(
        options.length,
        options.window,
        options.positions,
        options.seed,
        options.implementation,
        sequences=options.sequences,
        mesh=options.mesh,
    )
