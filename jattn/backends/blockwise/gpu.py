"""Tile sizes on a GPU: large ones, since there every tile is a dozen kernels that are launched one after the other.

A step of the loop over tiles costs the launches of its kernels, however small it is, and then what its scores cost.
XLA writes a tile's scores to memory and reads them again for each of the mask, the maximum, the exponentials, their sum
and the second product: the time of a step is that traffic, which takes several times as long as its products do.  So
a step should hold as many scores as make the launches a small share of it, and no more, since memory is held for them.

None of these figures was timed: kernels and traffic were counted in the compiled program, a launch is what CUDA is
known to take.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

from jattn_kernels import chips

_LAUNCHES = 16 * 4e-6
"""Seconds: of a tile's kernels, of which XLA's program for an H100 has 12 to 15 forward and 17 to 19 backward
(products, slices of keys and values, mask, maximum, exponentials, sum, and the sums carried along), 3 to 5 microseconds
each."""
_TRAFFIC = 6 * 4
"""Bytes that are moved for a score: a float32 that is written or read six times."""
_OF_SIDES = 3 * 4
"""Bytes that are moved for a number of a query row or a key: it is read, written as a float32, and read by the
product."""
_SHARE = 0.1  # of a step's time, that launches may take
_ARRAYS = 4 * 4  # bytes for a score that are held at once, backward: scores, weights and the gradients of both
_MEMORY = 1 / 16  # of all there is, that a step may hold
_SMALLEST = min(chips.GPUS.values(), key=lambda chip: chip.memory)
"""Stands for cards that are not in the table: its steps fit all of them."""


class CallSizes(NamedTuple):
    """What tile sizes depend on."""

    t: int
    s: int
    all: int
    """Key heads, over the batch."""
    together: int
    """As many of them as a step may take."""
    group: int
    """Query heads of a key head."""
    width: int
    """Numbers that a pair holds."""
    depth: int
    """Numbers that a query row holds, and a key: d + e."""
    masked: bool
    seen: int
    """Keys that a query sees at most, as far as windows of a fixed width say."""

    def scores(self, rows: int, columns: int) -> int:
        """Numbers that the pairs of a key head's tile hold."""
        return self.group * self.width * rows * columns

    def sides(self, rows: int, columns: int) -> int:
        """Numbers that its rows and its keys hold."""
        return (self.group * rows + columns) * self.depth

    def held(self, rows: int, columns: int) -> int:
        """Numbers that pairs, rows and keys of the tile hold."""
        return self.scores(rows, columns) + self.sides(rows, columns)


def _chip(name: str | None) -> chips.Gpu:
    return chips.GPUS.get(name or "", _SMALLEST)


def step(name: str | None) -> int:
    """Numbers that a step may hold, on a chip of that name."""
    chip = _chip(name)
    enough = _LAUNCHES * (1 - _SHARE) / _SHARE * chip.bandwidth / _TRAFFIC
    return int(min(enough, chip.memory * _MEMORY / _ARRAYS))


def tile_sizes(call: CallSizes, name: str | None, step: int) -> tuple[int, int]:
    """Query and key rows of a tile: those of the least estimated time, the larger of two that are alike."""
    fit = [x for x in itertools.product(_sizes(call.t), _sizes(call.s)) if call.held(*x) <= step]
    return min(fit, key=lambda x: (_seconds(call, *x, name, step), -x[0] * x[1])) if fit else (16, 128)


def _sizes(length: int) -> list[int]:
    """Powers of two from 128 on, and the whole."""
    return [n for n in (2**p for p in range(7, 24)) if n < length] + [length]


def _seconds(call: CallSizes, rows: int, columns: int, name: str | None, step: int) -> float:
    heads = max(1, min(call.together, step // call.held(rows, columns)))
    # these are the tiles of one key head: heads are counted below, since those of a step share their launches
    tiles = -(-call.t // rows) * _visited(call, rows, columns)
    moved = _TRAFFIC * call.scores(rows, columns) + _OF_SIDES * call.sides(rows, columns)
    return tiles * (-(-call.all // heads) * _LAUNCHES + call.all * moved / _chip(name).bandwidth)


def _visited(call: CallSizes, rows: int, columns: int) -> float:
    """Key blocks of a strip of query rows, on average: half of them where no window says more, as if causal."""
    blocks = -(-call.s // columns)
    if not call.masked:
        return blocks
    if call.seen < call.s:
        return min(blocks, (call.seen + rows) / columns + 1)
    return min(blocks, (blocks + max(1.0, rows / columns)) / 2)
