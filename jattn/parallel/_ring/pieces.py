"""Which pieces of a call a device computes at each step, as far as tracing knows."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import jax
import numpy as np
from jattn_kernels.tiles.work import EMPTY, FULL, PARTIAL, kind_of

from jattn._terms import Terms, block_tables
from jattn._terms.block_tables import Tiling
from jattn._terms.moved import moved
from jattn._terms.reach import span
from jattn.masks import Mask
from jattn.mods import Bias, SoftCap
from jattn.parallel._shares import Shares


class Way(NamedTuple):
    """How a piece is computed: whether the mask is looked at, and whether its first query and key stand level."""

    masked: bool
    level: bool


Extent = tuple[Any, int]
"""Where a part of an axis begins, and how long it is."""


class Piece(NamedTuple):
    """A part of a device's queries and a part of the keys that it holds; chunks, or all of them where all is full."""

    rows: Extent
    columns: Extent
    row: Any  # the number of the chunk of all queries
    column: Any
    source: Any  # the device whose keys they are
    level: bool
    kinds: tuple[int, ...]
    """Which of empty, partial and full the piece may be, as far as tracing knows."""


class Group(NamedTuple):
    """Pieces of one step that are computed alike: one after the other, in a loop that holds their kernels once."""

    pairs: tuple[tuple[int, int], ...]
    """For each piece the number of its chunk among the device's chunks of queries, and among those of keys."""
    level: bool
    kinds: tuple[int, ...]


def kinds(mask: Mask | None, t: int, s: int, shares: Shares) -> np.ndarray | None:
    """The kind of every piece of a call, `[chunks of queries, chunks of keys]`; None where that depends on arrays."""
    if jax.tree.leaves(mask):
        return None
    answer = block_tables.answers(mask, Tiling(t, t // shares.count), Tiling(s, s // shares.count))
    some, every = np.asarray(answer.some).any((0, 1)), np.asarray(answer.every & answer.some).all((0, 1))
    return kind_of(some, every)


class Pieces:
    """What is known of a call's pieces while tracing."""

    def __init__(self, terms: Terms, t: int, s: int, shares: Shares):
        self.terms, self.t, self.s, self.shares = terms, t, s, shares
        self.table = kinds(moved(terms), t * shares.devices, s * shares.devices, shares)

    @property
    def chunk(self) -> tuple[int, int]:
        """How many queries and how many keys a chunk has."""
        return self.t // self.shares.each, self.s // self.shares.each

    @property
    def _free(self) -> bool:
        """Whether nothing but the mask looks at positions."""
        return not self.terms.gates and all(isinstance(x, (SoftCap, Bias)) for x in self.terms.mods)

    @property
    def in_order(self) -> bool:
        """Whether a device's own queries and keys may take each other for neighbours: the mask goes by their order."""
        near, same = span(moved(self.terms)), self.t == self.s
        return self._free and same and near.exact and (near.left, near.right) == (np.inf, 0)

    def rectangles(self) -> tuple[np.ndarray, list[tuple[Extent, Extent] | None]] | None:
        """All of a later step as one part of the queries and one of the keys that are full, if that is what it is:
        which one by the device and the keys' device, and what there are.  So it is in zig-zag order under a causal
        mask: all queries and the keys' first chunk, or the second chunk of queries and all keys."""
        if not self._free or self.table is None:
            return None
        n = self.shares.devices
        every = np.arange(n)
        chunks = np.stack([self.shares.chunk(every, a) for a in range(self.shares.each)])
        full = self.table[chunks[:, None, :, None], chunks[None, :, None, :]]  # [a, b, device, keys' device]
        full[:, :, every, every] = EMPTY
        if (full == PARTIAL).any():
            return None
        patterns, which = np.unique((full == FULL).reshape(len(chunks) ** 2, -1), axis=1, return_inverse=True)
        rectangles = [self._extents(x.reshape(len(chunks), -1)) for x in patterns.T]
        if any(x == "scattered" for x in rectangles):
            return None
        return which.reshape(n, n).astype(np.int32), rectangles  # type: ignore[return-value]

    def _extents(self, full: np.ndarray) -> tuple[Extent, Extent] | str | None:
        """The rectangle that the full pairs of chunks make: None if there are none, "scattered" if they make none."""
        rows, columns = np.flatnonzero(full.any(1)), np.flatnonzero(full.any(0))
        if not rows.size:
            return None
        (t, s), size = self.chunk, int(full.sum())
        if size != rows.size * columns.size:
            return "scattered"
        return (int(rows[0]) * t, rows.size * t), (int(columns[0]) * s, columns.size * s)

    def groups(self, first: bool) -> list[Group]:
        """The chunks of a step, the `first` or a later one, that may have something to compute on some device."""
        each = range(self.shares.each)
        pairs = list(itertools.product(each, each))
        level = first and self.chunk[0] == self.chunk[1]
        apart = [[x for x in pairs if x[0] == x[1]], [x for x in pairs if x[0] != x[1]]] if level else [pairs]
        groups = []
        for n, some in enumerate(apart):
            kinds = {x: self._kinds(*x, first) for x in some}
            busy = tuple(x for x in some if kinds[x] != (EMPTY,))
            every = tuple(sorted({k for x in busy for k in kinds[x]}))
            if busy:
                groups.append(Group(busy, level and n == 0, every))
        return groups

    def _kinds(self, a: int, b: int, first: bool) -> tuple[int, ...]:
        """Which of empty, partial and full a pair of chunks may be, on any device."""
        if self.terms.mask is None:
            return (FULL,)
        if self.table is None:
            return (EMPTY, PARTIAL, FULL)
        every = np.arange(self.shares.devices)
        kinds = self.table[self.shares.chunk(every, a)][:, self.shares.chunk(every, b)]
        own = np.eye(self.shares.devices, dtype=bool)
        return tuple(sorted({int(x) for x in kinds[own if first else ~own]}))
