"""English to German in pieces of words: an encoder-decoder Transformer whose cross-attention is an alignment."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jattn.zoo._task import Task

DATA = (
    "the sentences of Debian's dictionary trans-de-en (GPL-2+) where it is given or installed,"
    " else the 700 messages of Django"
)
ABOUT = "Translates short English sentences into German with an encoder-decoder Transformer."
STEPS = 3000
ARCHIVES = ("django",)
VARIANTS: dict[str, tuple[str, ...]] = {
    "multi-head": (),
    "multi-query": ("--kv-heads", "1"),
    "multi-head, Django's messages": ("--dictionary", "none"),
}
INSTALLED = Path("/usr/share/trans/de-en")  # where `apt-get install trans-de-en` puts it


def add_options(parser: argparse.ArgumentParser) -> None:
    dictionary = INSTALLED if INSTALLED.is_file() else None
    parser.add_argument(
        "--dictionary", type=_file, default=dictionary, help="file de-en of trans-de-en; none: the messages of Django"
    )
    parser.add_argument(
        "--kv-heads", type=int, choices=(1, 2, 4), default=4, help="key and value heads for the four query heads"
    )


def _file(text: str) -> Path | None:
    return None if text == "none" else Path(text)


def build(options: argparse.Namespace) -> Task:
    from jattn.zoo.translate import data
    from jattn.zoo.translate.task import translate

    given = options.dictionary is not None
    pairs = data.dictionary(options.dictionary) if given else data.messages()
    name = "the dictionary" if given else "Django's messages"
    return translate(pairs, name, options.kv_heads, options.seed, options.implementation)
