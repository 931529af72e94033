"""Static masks on TPU: answers for tiles, and how their partial tiles are worked off."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from jattn_kernels.tiles import work
from jattn_kernels.tiles.work import Answers, Direction, Frame

from jattn._terms import block_tables
from jattn._terms.reach import Span
from jattn.masks import Mask

_PATTERNS = 4  # more kinds of partial tiles than this are worked off as masked throughout: each is code of its own
_STRETCHES = 256  # so with more stretches than this: of a scattered layout every strip meets many
_CELLS = 2**24  # more cells than this are not looked at: tiles are then full or masked throughout


def _grain(frame: Frame) -> int:
    return math.gcd(math.gcd(frame.sizes.query, frame.sizes.key), frame.sizes.grain)


class _Patterns:
    """Numbers for the patterns of partial tiles, in the order in which they come."""

    def __init__(self, frame: Frame, direction: Direction):
        self.frame, self.direction, self.numbers = frame, direction, {}

    def number(self, cells: np.ndarray) -> int:
        """The number of a tile's pattern; its cells `[rows, columns]` are `EMPTY`, `PARTIAL` or `FULL`."""
        grain = _grain(self.frame)
        strips = _strips(cells, grain) if self.direction == "forward" else _without_gaps(_strips(cells.T, grain))
        return self.numbers.setdefault(strips, len(self.numbers))

    def few(self) -> tuple[work.Pattern, ...] | None:
        """The patterns; None if they are too many, or too much code."""
        stretches = sum(len(strip.stretches) for pattern in self.numbers for strip in pattern)
        return tuple(self.numbers) if len(self.numbers) <= _PATTERNS and stretches <= _STRETCHES else None


def _strips(kind: np.ndarray, grain: int) -> work.Pattern:
    """Strips, each with runs of full and of partial cells; strips alike and side by side are one."""
    strips: list[work.Strip] = []
    for n, line in enumerate(kind):
        edges = [0, *(np.flatnonzero(np.diff(line)) + 1), len(line)]
        stretches = tuple(
            work.Stretch(int(a) * grain, int(b - a) * grain, bool(line[a] == work.PARTIAL))
            for a, b in itertools.pairwise(edges) if line[a] != work.EMPTY
        )  # fmt: skip
        if stretches and strips and strips[-1].stretches == stretches and strips[-1].at + strips[-1].size == n * grain:
            strips[-1] = strips[-1]._replace(size=strips[-1].size + grain)
        elif stretches:
            strips.append(work.Strip(n * grain, grain, stretches))
    return tuple(strips)


def _without_gaps(strips: work.Pattern) -> work.Pattern:
    """The pattern with a strip of its own for every run of stretches without a gap."""
    apart = []
    for strip in strips:
        run: list[work.Stretch] = []
        for one in strip.stretches:
            if run and run[-1].at + run[-1].size != one.at:
                apart.append(strip._replace(stretches=tuple(run)))
                run = []
            run.append(one)
        apart.append(strip._replace(stretches=tuple(run)))
    return tuple(apart)


def whole(frame: Frame, direction: Direction) -> tuple[work.Pattern, ...]:
    """The patterns of a mask whose partial tiles are masked throughout."""
    return (frame.sizes.whole(True, direction == "backward"),)


# Masks of any kind


def of_mask(mask: Mask | None, frame: Frame, direction: Direction) -> tuple[Answers, tuple[work.Pattern, ...]]:
    """Answers for the tiles of a static mask, from those for the cells that tiles are cut into."""
    sizes, grain = frame.sizes, _grain(frame)
    if frame.t * frame.s > _CELLS * grain**2:
        tilings = (block_tables.Tiling(n, x, overhang=True) for n, x in ((frame.t, sizes.query), (frame.s, sizes.key)))
        some, every = (np.asarray(x).reshape(-1, *x.shape[2:]) for x in block_tables.answers(mask, *tilings))
        return Answers(some, every & some, np.zeros(some.shape, np.int32), 1, some.shape[0]), whole(frame, direction)
    fine = block_tables.answers(mask, *(block_tables.Tiling(n, grain, overhang=True) for n in (frame.t, frame.s)))
    batch, heads = fine.some.shape[:2]
    nq, nk = frame.query_tiles, frame.key_tiles
    rows, columns = sizes.query // grain, sizes.key // grain
    kind = work.kind_of(*fine).reshape(batch * heads, *fine.some.shape[2:])
    kind = np.pad(kind, ((0, 0), (0, nq * rows - kind.shape[1]), (0, nk * columns - kind.shape[2])))
    kind = kind.reshape(-1, nq, rows, nk, columns).swapaxes(2, 3)  # [n, query tiles, key tiles, rows, columns]
    inside = np.arange(nq * rows).reshape(nq, 1, rows, 1) * grain < frame.t  # rows past the end do not count
    some = np.asarray((kind != work.EMPTY).any((-2, -1)))
    every = np.asarray(((kind == work.FULL) | ~inside).all((-2, -1)))
    kinds = _Patterns(frame, direction)
    number = np.zeros(some.shape, np.int32)
    for place in np.argwhere(some & ~every):
        number[tuple(place)] = kinds.number(kind[tuple(place)])
    patterns = kinds.few()
    if patterns is None:
        patterns, number = whole(frame, direction), np.zeros_like(number)
    return Answers(some, every & some, number, batch, heads), patterns


# Windows, by arithmetic


def ends_of_span(span: Span, frame: Frame) -> np.ndarray:
    """`Runs`' scalars but the patterns, `[query tiles, 4]`, of a window."""
    (t, s), (rows, columns) = (frame.t, frame.s), (frame.sizes.query, frame.sizes.key)
    if span.left + span.right < 0:
        return np.zeros((frame.query_tiles, 4), np.int32)
    left, right = (int(min(x, t + s)) if x > 0 else int(max(x, -t - s)) for x in (span.left, span.right))
    begin = np.arange(frame.query_tiles, dtype=np.int64) * rows
    last = np.minimum(begin + rows, t) - 1
    lowest, highest = np.maximum(begin - left, 0), np.minimum(last + right, s - 1)  # keys that some row sees
    seen = lowest <= highest
    first, end = np.where(seen, lowest // columns, 0), np.where(seen, highest // columns + 1, 0)
    lowest, highest = np.maximum(last - left, 0), np.minimum(begin + right, s - 1)  # keys that every row sees
    full, rest = -(-lowest // columns), (highest + 1) // columns
    none = full >= rest
    full, rest = np.where(none, end, full), np.where(none, end, rest)
    return np.stack([first, full, rest, end], -1).astype(np.int32)


def of_span(span: Span, ends: np.ndarray, frame: Frame, direction: Direction) -> tuple[list[list[int]], Any]:
    """The numbers of the patterns of each query tile's partial tiles, and the patterns."""
    kinds = _Patterns(frame, direction)
    known: dict[tuple[int, int, int], int] = {}
    numbers = []
    for i, (first, full, rest, end) in enumerate(ends.tolist()):
        numbers.append([])
        for n in (*range(first, full), *range(rest, end)):
            i0, j0 = i * frame.sizes.query, n * frame.sizes.key
            what = i0 - j0, min(frame.t - i0, frame.sizes.query), min(frame.s - j0, frame.sizes.key)
            if what not in known:
                known[what] = kinds.number(_cells(span, *what, frame))
            numbers[-1].append(known[what])
    patterns = kinds.few()
    if patterns is None:
        return [[0] * len(x) for x in numbers], whole(frame, direction)
    return numbers, patterns


def _cells(span: Span, offset: int, rows: int, columns: int, frame: Frame) -> np.ndarray:
    """The cells of a tile whose first row is `offset` behind its first key, of the rows and keys that exist."""
    grain = _grain(frame)
    i, j = (np.arange(x // grain) * grain for x in (frame.sizes.query, frame.sizes.key))
    i_lo, i_hi = i[:, None] + offset, np.minimum(i + grain, rows)[:, None] - 1 + offset
    j_lo, j_hi = j[None], np.minimum(j + grain, columns)[None] - 1
    exist = (i < rows)[:, None] & (j < columns)
    some = exist & (j_hi >= i_lo - span.left) & (j_lo <= i_hi + span.right)
    every = some & (j_lo >= i_hi - span.left) & (j_hi <= i_lo + span.right) & (j + grain <= columns)
    return work.kind_of(some, every)


def tiles_of_span(ends: np.ndarray, numbers: list[list[int]], key_tiles: int) -> Answers:
    """Answers for the tiles of a window."""
    at = np.arange(key_tiles)
    first, full, rest, end = (ends[:, n, None] for n in range(4))
    some, every = (first <= at) & (at < end), (full <= at) & (at < rest)
    number = np.zeros(some.shape, np.int32)
    number[some & ~every] = np.array(list(itertools.chain(*numbers)), np.int32)
    return Answers(some[None], every[None], number[None], 1, 1)
