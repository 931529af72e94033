"""How many tiles of a call are empty, partial and full, for `jattn.explain`."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from jattn._terms import block_tables
from jattn._terms.block_tables import Tiling
from jattn.masks import Mask


class Count(NamedTuple):
    """Tiles over batch and heads, and what they hold."""

    empty: int
    partial: int
    full: int
    pairs: int
    """Pairs of queries and keys in the tiles that are visited, where some hang over the ends."""

    @property
    def blocks(self) -> tuple[int, int, int]:
        return self[:3]


def count(mask: Mask | None, b: int, h: int, query: Tiling, key: Tiling) -> Count:
    """Counts the tiles of a mask without arrays; the last ones hang over the ends."""
    answer = block_tables.answers(mask, query, key)
    some, every = (np.asarray(x) for x in (answer.some, answer.every & answer.some))
    times = b * h // math.prod(some.shape[:2])  # batch elements and heads whose answers are the same
    rows, columns = (np.diff(np.minimum(np.arange(x.count + 1) * x.block, x.length)) for x in (query, key))
    full, pairs = times * int(every.sum()), times * int((some @ columns @ rows).sum())
    return Count(times * int((~some).sum()), times * int(some.sum()) - full, full, pairs)
