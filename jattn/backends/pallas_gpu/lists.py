"""Masks as lists of tiles for the GPU kernels."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
from jattn_kernels.gpu.lists import Lists
from jattn_kernels.gpu.sizes import Sizes
from jattn_kernels.tiles import work

from jattn._terms import AnyArray, block_tables
from jattn._terms.block_tables import Answer, Tiling
from jattn.masks import Mask

_MOST = 2**20  # tiles of a mask beyond which there are runs and no lists


def lists_of(mask: Mask | None, t: int, s: int, sizes: Sizes, rows: str) -> tuple[Lists, list[AnyArray]]:
    """Which tiles a kernel visits whose rows are queries, `t`, or keys, `s`; and the arrays that say so."""
    if jax.tree.leaves(mask):
        return _lists(mask, t, s, sizes, rows)
    return _static(mask, t, s, sizes, rows)


@functools.lru_cache(maxsize=256)
def _static(mask: Mask | None, t: int, s: int, sizes: Sizes, rows: str) -> tuple[Lists, list[AnyArray]]:
    return _lists(mask, t, s, sizes, rows)


def _lists(mask: Mask | None, t: int, s: int, sizes: Sizes, rows: str) -> tuple[Lists, list[AnyArray]]:
    lengths = (sizes.rows, sizes.columns) if rows == "t" else (sizes.columns, sizes.rows)
    query, key = (Tiling(n, x, overhang=True) for n, x in zip((t, s), lengths, strict=True))
    some, every = block_tables.answers(mask, query, key)
    xp = work.numpy_of(some)
    if rows == "s":
        if not query.whole:  # queries past the end stand in the last tile's columns: it looks at positions
            every = every & (np.arange(query.count) < query.count - 1)[:, None]
        some, every = (xp.swapaxes(x, -1, -2) for x in (some, every))
    every = every & some
    batch, heads, lines, tiles = some.shape
    if xp is np and every.all():
        return Lists("all", 1, 1, tiles), []
    kinds = (bool(every.any()), bool((some & ~every).any())) if xp is np else (True, True)
    if batch * heads * lines * tiles <= _MOST:
        table: Any = block_tables.tabulate(Answer(some, every))  # its index is an array: it has no runs
        return Lists("list", batch, heads, tiles, kinds), [table.index, table.full, table.partial]
    some, every = (x.reshape(-1, lines, tiles) for x in (some, every))
    ends = work.runs(work.Answers(some, every, np.zeros(()), batch, heads))
    first, full, rest, end = (ends[..., n].reshape(batch, heads, lines) for n in range(4))
    return Lists("runs", batch, heads, tiles, kinds), [first, full, rest - full, full - first + end - rest]
