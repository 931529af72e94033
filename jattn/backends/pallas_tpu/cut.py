"""How a call is cut, and an estimate of its time, for `jattn.explain`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jattn_kernels import chips, tables
from jattn_kernels.tiles.work import Frame

from jattn._terms import block_tables
from jattn.backends.contract import Cut, Shaped, Spec
from jattn.backends.pallas.count import count
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
    counted = count(mask, b, h, query, key)
    entry = tables.find("tpu", spec.target.chip, max(d, e), max(t, s), *case_of(spec, t, s, "forward")).entry
    worked_off = (
        (counted.full + counted.partial / 2) * tile[0] * tile[1]
    )  # with rows that fill a tile up; of a partial tile about half
    seconds = 1e-3 * entry.milliseconds * worked_off / entry.pairs * (d + e) / (2 * entry.d)
    moved = sum(math.prod(x.shape) * x.dtype.itemsize for x in (q, k, v, *operands))
    moved += b * t * h * (e * np.dtype(spec.dtype).itemsize + 4)  # out, and lse in float32
    chip = chips.tpu(spec.target.chip)
    seconds = seconds if chip is None else max(seconds, moved / chip.bandwidth)
    return Cut(tile, counted.blocks, source, 1e3 * seconds, counted.pairs)
