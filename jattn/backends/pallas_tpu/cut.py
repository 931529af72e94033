"""How a call is cut, and an estimate of its time, for `jattn.explain`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jattn_kernels import chips, tables
from jattn_kernels.tiles.work import Frame

from jattn._terms import block_tables
from jattn.backends.contract import Cut, Shaped, Spec
from jattn.backends.pallas.work import lengths
from jattn.backends.pallas_tpu.sizes import case_of, tile_sizes
from jattn.masks import Mask


def cut(spec: Spec, q: Shaped, k: Shaped, v: Shaped, operands: Sequence[Shaped], mask: Mask | None, known: bool) -> Cut:
    """How the call is cut, forward; blocks are counted where the mask is `known`."""
    sizes, source = tile_sizes(spec, q, k, v, "forward")
    tile = sizes.query, sizes.key
    if not known:
        return Cut(tile, None, source)
    (b, t, h, d), (s, e) = q.shape, (v.shape[1], v.shape[-1])
    query, key = (block_tables.Tiling(n, x, overhang=True) for n, x in lengths(Frame(t, s, sizes)))
    answer = block_tables.answers(mask, query, key)
    some, every = (np.asarray(x) for x in (answer.some, answer.every & answer.some))
    times = b * h // math.prod(some.shape[:2])  # batch elements and heads whose answers are the same
    rows, columns = (np.diff(np.minimum(np.arange(x.count + 1) * x.block, x.length)) for x in (query, key))
    full, pairs = times * int(every.sum()), times * int((some @ columns @ rows).sum())
    partial, empty = times * int(some.sum()) - full, times * int((~some).sum())
    entry = tables.find("tpu", spec.target.chip, max(d, e), max(t, s), *case_of(spec, t, s, "forward")).entry
    worked_off = (full + partial / 2) * tile[0] * tile[1]  # with rows that fill a tile up; of a partial tile about half
    seconds = 1e-3 * entry.milliseconds * worked_off / entry.pairs * (d + e) / (2 * entry.d)
    moved = sum(math.prod(x.shape) * x.dtype.itemsize for x in (q, k, v, *operands))
    moved += b * t * h * (e * np.dtype(spec.dtype).itemsize + 4)  # out, and lse in float32
    chip = chips.tpu(spec.target.chip)
    seconds = seconds if chip is None else max(seconds, moved / chip.bandwidth)
    return Cut(tile, (empty, partial, full), source, 1e3 * seconds, pairs)
