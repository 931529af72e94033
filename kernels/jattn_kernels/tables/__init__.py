"""Tuned tile sizes, a file for each family of kernels, and what recorded runs have confirmed.

`tpu.json` is made by `python -m bench tune tpu`: a list of entries.  `gpu.json` is written by `python -m bench gpu`:
its `entries` are such a list, and `confirmed` says on which chips which backends were run and found right.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import math
from typing import Any, NamedTuple

PASSES = ("forward", "backward")
PAGES = "pages"  # beside them, of forward passes that read keys from pages
NARROW = "8-bits"  # and of those whose keys and values are of 8 bits
MASKS = ("full", "causal", "window")
ELSEWHERE = "v5e"  # its sizes are those of TPUs without entries, and of the interpreter


class Entry(NamedTuple):
    """The best sizes found for one case, and the time that was counted for it.

    Attributes:
        chip: its name in `jattn_kernels.chips`.
        d, t: width, and length of queries and keys.
        mask: one of `MASKS`.
        direction: one of `PASSES`; on GPU the kernel, `forward`, `queries` or `keys`.
        sizes: the fields of the kernel's `TileSizes`.
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


class TunedEntry(NamedTuple):
    """The entry that a case goes by, and whether it was made for such a case: if not, it is the nearest."""

    entry: Entry
    exact: bool

    def __str__(self) -> str:
        return f"tuned for {self.entry.name}" if self.exact else f"nearest of the table: {self.entry.name}"


class Confirmed(NamedTuple):
    """A run on a device that showed a backend right there: the reason to choose it where nobody asked for it.

    Attributes:
        chip: its name in `jattn_kernels.chips`.
        backend: as `implementation=` takes it.
        dtype: of query, key and value; of the query, where `NARROW`.
        passes: those of `PASSES` that were run and found right, and `PAGES` and `NARROW` alike.
        device: what the device called itself.
        date: of the run, as 2026-12-31.
        run: the record of the run, a path from the root of the repository.
    """

    chip: str
    backend: str
    dtype: str
    passes: tuple[str, ...]
    device: str
    date: str
    run: str

    def __str__(self) -> str:
        return f"{self.device}, {self.date}, {self.run}"


class FamilyTable(NamedTuple):
    """What a family's file says."""

    entries: tuple[Entry, ...]
    confirmed: tuple[Confirmed, ...] = ()


def parse(text: str) -> FamilyTable:
    """A family's file: a list of entries, or an object of `entries` and what is `confirmed`."""
    content = json.loads(text)
    content = content if isinstance(content, dict) else {"entries": content}
    runs = ({**x, "passes": tuple(x["passes"])} for x in content.get("confirmed", ()))
    return FamilyTable(tuple(Entry(**x) for x in content["entries"]), tuple(Confirmed(**x) for x in runs))


@functools.cache
def _table(family: str) -> FamilyTable:
    return parse(importlib.resources.files(__name__).joinpath(f"{family}.json").read_text())


def read(family: str) -> tuple[Entry, ...]:
    """The entries of a family of kernels."""
    return _table(family).entries


def confirmed(family: str) -> tuple[Confirmed, ...]:
    """What recorded runs have confirmed of a family's backends."""
    return _table(family).confirmed


def find(chip: str | None, d: int, t: int, mask: str, direction: str) -> TunedEntry:
    """The entry for a case on TPU: of its chip, `ELSEWHERE`'s if it has none, the nearest in width, mask and length.

    Raises:
      LookupError: the table has no entries of that pass.
    """
    table = tuple(x for x in read("tpu") if x.direction == direction)
    own = tuple(x for x in table if x.chip == chip)
    others = tuple(x for x in table if x.chip == ELSEWHERE)
    octaves = lambda a, b: abs(math.log2(a / b))

    def distance(x: Entry) -> float:
        return 4 * octaves(x.d, d) + 2 * (x.mask != mask) + octaves(x.t, t)

    if not (own or others):
        raise LookupError(f"tables/tpu.json has no {direction} entries of {chip} or {ELSEWHERE}")
    best = min(own or others, key=distance)
    return TunedEntry(best, bool(own) and best.d == d and best.mask == mask and octaves(best.t, t) <= 0.5)
