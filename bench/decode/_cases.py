"""What is decoded: kinds of caches, batches, and how full the caches are.

Axis letters are those of the library; n is the room of a cache, `fill` how many of its positions each example has had.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

KINDS = ("contiguous", "paged", "int8", "window")
BATCHES = (1, 8)
FILLS = (128, 1024, 8192)
ROOM = 8192
HEADS, KEY_HEADS, WIDTH = 32, 8, 128
WINDOW = 1024  # keys that a query of the window sees: itself and the 1023 before it
PAGES = (16, 64, 256)
QUICK = ("contiguous-b8-fill1024", "window-b8-fill8192")


@dataclass(frozen=True)
class Case:
    """One step of decoding: a query of each of h heads, and the keys that it sees."""

    kind: str
    b: int
    fill: int
    n: int = ROOM
    h: int = HEADS
    g: int = KEY_HEADS
    d: int = WIDTH
    page: int | None = None  # keys of a page, where the cache has pages

    @property
    def name(self) -> str:
        """What `--filter` searches, e.g. `paged64-b8-fill1024`."""
        return f"{self.title}-b{self.b}-fill{self.fill}"

    @property
    def title(self) -> str:
        """The kind, with the size of its pages."""
        return f"{self.kind}{self.page or ''}"

    @property
    def seen(self) -> int:
        """Keys that a query sees."""
        return min(self.fill, WINDOW) if self.kind == "window" else self.fill

    def bytes(self, width: int) -> int:
        """What a step has to read: the keys and values that are seen, of `width` bytes a number, and their scales."""
        rows = 2 * self.b * self.seen * self.g
        return rows * (self.d + 4) if self.kind == "int8" else rows * self.d * width


def cases(
    kinds: Sequence[str] = KINDS,
    batches: Sequence[int] = BATCHES,
    fills: Sequence[int] = FILLS,
    n: int = ROOM,
    pages: Sequence[int] = PAGES,
) -> list[Case]:
    """Every combination whose fill fits; of caches with pages one for every size of them."""
    return [
        Case(kind, b, fill, n, page=page)
        for kind, b, fill in itertools.product(kinds, batches, fills)
        for page in (pages if kind == "paged" else (None,))
        if fill <= n
    ]
