"""Tuned tile sizes, a file for each family of kernels: `tpu.json`, made by `python -m bench tune tpu`."""

from __future__ import annotations

import functools
import importlib.resources
import json
import math
from typing import Any, NamedTuple

PASSES = ("forward", "backward")
MASKS = ("full", "causal", "window")
ELSEWHERE = {"tpu": "v5e"}  # by family, whose sizes chips without entries get, and the interpreter


class Entry(NamedTuple):
    """The best sizes found for one case, and the time that was counted for it.

    Attributes:
        chip: its name in `jattn_kernels.chips`.
        d, t: width, and length of queries and keys.
        mask: one of `MASKS`.
        direction: one of `PASSES`.
        sizes: the fields of the kernel's `Sizes`.
        milliseconds: of one head.
        pairs: how many pairs of a query and a key one head attends to.
    """

    chip: str
    d: int
    t: int
    mask: str
    direction: str
    sizes: dict[str, Any]
    milliseconds: float
    pairs: int

    @property
    def name(self) -> str:
        return f"{self.chip}, {self.direction}, {self.mask}, d {self.d}, t {self.t}"


class Found(NamedTuple):
    """The entry that a case goes by, and whether it was made for such a case: if not, it is the nearest."""

    entry: Entry
    exact: bool

    def __str__(self) -> str:
        return f"tuned for {self.entry.name}" if self.exact else f"nearest of the table: {self.entry.name}"


@functools.cache
def read(family: str) -> tuple[Entry, ...]:
    """The table of a family of kernels."""
    text = importlib.resources.files(__name__).joinpath(f"{family}.json").read_text()
    return tuple(Entry(**x) for x in json.loads(text))


def find(family: str, chip: str | None, d: int, t: int, mask: str, direction: str) -> Found:
    """The entry for a case: of its chip, `ELSEWHERE`'s if it has none, the nearest in width, mask and length."""
    table = tuple(x for x in read(family) if x.direction == direction)
    own = tuple(x for x in table if x.chip == chip)
    others = tuple(x for x in table if x.chip == ELSEWHERE[family])
    octaves = lambda a, b: abs(math.log2(a / b))

    def distance(x: Entry) -> float:
        return 4 * octaves(x.d, d) + 2 * (x.mask != mask) + octaves(x.t, t)

    best = min(own or others, key=distance)
    return Found(best, bool(own) and best.d == d and best.mask == mask and octaves(best.t, t) <= 0.5)
