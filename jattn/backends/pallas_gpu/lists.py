"""Masks as lists of tiles for the GPU kernels."""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import numpy as np
from jattn_kernels.gpu.lists import LineLists
from jattn_kernels.gpu.sizes import TileSizes
from jattn_kernels.tiles import work

from jattn._terms import AnyArray, block_tables
from jattn._terms.block_tables import Answer, Tiling
from jattn.masks import Mask

_MOST = 2**20  # tiles of a mask beyond which there are runs and no lists


Lines = Literal["t", "s", "ts", "r"]
"""What a line of tiles is: one of query tiles, one of key tiles, a single tile, or a diagonal of tiles."""


def lists_of(
    mask: Mask | None, t: int, s: int, sizes: TileSizes, lines: Lines, most: int = _MOST
) -> tuple[LineLists, list[AnyArray]]:
    """Which tiles a kernel visits, whose rows are keys where `lines` are `s`, else queries; and the arrays that say
    so.  A mask of more than `most` tiles has runs."""
    if jax.tree.leaves(mask):
        return _lists(mask, t, s, sizes, lines, most)
    return _static(mask, t, s, sizes, lines, most)


@functools.lru_cache(maxsize=256)
def _static(
    mask: Mask | None, t: int, s: int, sizes: TileSizes, lines: Lines, most: int
) -> tuple[LineLists, list[AnyArray]]:
    return _lists(mask, t, s, sizes, lines, most)


def _along_diagonals(x: AnyArray, step: int) -> Any:
    """`[.., query tiles, key tiles]` as `[.., diagonals, query tiles]`, the lowest first, False where there is no
    tile; of the next queries a diagonal has the tile `step` key tiles further."""
    queries, keys = x.shape[-2:]
    query = np.arange(queries)
    key = np.arange((queries - 1) * step + keys)[:, None] + (query - queries + 1) * step
    inside = (key >= 0) & (key < keys)
    return x[..., query, np.clip(key, 0, keys - 1)] & inside


def _lists(
    mask: Mask | None, t: int, s: int, sizes: TileSizes, lines: Lines, most: int
) -> tuple[LineLists, list[AnyArray]]:
    lengths = (sizes.columns, sizes.rows) if lines == "s" else (sizes.rows, sizes.columns)
    query, key = (Tiling(n, x, overhang=True) for n, x in zip((t, s), lengths, strict=True))
    some, every = block_tables.answers(mask, query, key)
    xp = work.numpy_of(some)
    if lines == "ts":
        some, every = (x.reshape(*x.shape[:2], -1, 1) for x in (some, every))
    elif lines == "r":
        some, every = (_along_diagonals(x, sizes.rows // sizes.columns) for x in (some, every))
    elif lines == "s":
        if not query.whole:  # queries past the end stand in the last tile's columns: it looks at positions
            every = every & (np.arange(query.count) < query.count - 1)[:, None]
        some, every = (xp.swapaxes(x, -1, -2) for x in (some, every))
    every = every & some
    batch, heads, count, tiles = some.shape
    if xp is np and every.all():
        return LineLists("all", 1, 1, tiles), []
    kinds = (bool(every.any()), bool((some & ~every).any())) if xp is np else (True, True)
    if batch * heads * count * tiles <= most:
        table: Any = block_tables.tabulate(Answer(some, every))  # its index is an array: it has no runs
        return LineLists("list", batch, heads, tiles, kinds), [table.index, table.full, table.partial]
    some, every = (x.reshape(-1, count, tiles) for x in (some, every))
    ends = work.runs(work.Answers(some, every, np.zeros(()), batch, heads))
    first, full, rest, end = (ends[..., n].reshape(batch, heads, count) for n in range(4))
    return LineLists("runs", batch, heads, tiles, kinds), [first, full, rest - full, full - first + end - rest]
