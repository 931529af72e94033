"""How a call is cut, and an estimate of its time, for `jattn.explain`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jattn_kernels import chips, tables
from jattn_kernels.tiles.work import Frame
from jattn_kernels.tpu.decode.fold import Fold

from jattn import masks
from jattn._terms import Offsets, block_tables, split
from jattn._terms.reach import span
from jattn.backends.contract import Cut, Shaped, Spec
from jattn.backends.pallas.count import Count, count
from jattn.backends.pallas.terms import terms_of
from jattn.backends.pallas.work import lengths
from jattn.backends.pallas_tpu.decode import fold_of
from jattn.backends.pallas_tpu.sizes import case_of, tile_sizes
from jattn.masks import Mask

_STEP = 300  # cycles that a chunk of folded heads takes before its first product, as counted on v5e
_COLUMN, _PAIR = 0.1, 1 / 240  # cycles for each column of a chunk, and for each pair of those with rows


def cut(spec: Spec, q: Shaped, k: Shaped, v: Shaped, operands: Sequence[Shaped], mask: Mask | None, known: bool) -> Cut:
    """How the call is cut, forward; blocks are counted where the mask is `known`."""
    (b, t, h, _), (s, e) = q.shape, (v.shape[1], v.shape[-1])
    fold = fold_of(spec, q, k, v)
    if fold is None:
        sizes, source = tile_sizes(spec, q, k, v, "forward")
        tile, tiles = (sizes.query, sizes.key), lengths(Frame(t, s, sizes))
    else:
        source = "as asked for" if spec.blocks is not None else "chunks by the memory's speed"
        tile, tiles = (t, fold.chunk), ((t, t), (s, fold.chunk))
    if not known:
        return Cut(tile, None, source)
    query, key = (block_tables.Tiling(n, x, overhang=True) for n, x in tiles)
    counted, chip = count(mask, b, h, query, key), chips.tpu(spec.target.chip)
    small = sum(math.prod(x.shape) * x.dtype.itemsize for x in (q, *operands))
    small += b * t * h * (e * np.dtype(spec.dtype).itemsize + 4)  # out, and lse in float32
    keys = sum(math.prod(x.shape) * x.dtype.itemsize for x in (k, v))
    if fold is not None:
        share = counted.pairs / (b * h * t * s)
        return Cut(tile, counted.blocks, source, _folded(fold, counted, h, small + share * keys, chip), counted.pairs)
    # The table's pairs cost the more the less of their tiles a mask leaves; but a mask that hides more never takes
    # longer, and in few tiles a window hides hardly more than a causal mask.
    right = span(mask).right
    wider = [None] if right >= s - 1 else [None, masks.Window(None, int(right))]
    seconds = min(_computing(spec, q, k, v, counted, tile), *(_of_another(spec, q, k, v, x) for x in wider))
    seconds = seconds if chip is None else max(seconds, (small + keys) / chip.bandwidth)
    return Cut(tile, counted.blocks, source, 1e3 * seconds, counted.pairs)


def _of_another(spec: Spec, q: Shaped, k: Shaped, v: Shaped, mask: Mask | None) -> float:
    """`_computing` of the same call with another mask, in tiles of its own."""
    terms = dataclasses.replace(terms_of(spec), mask=mask, offsets=Offsets())
    spec = dataclasses.replace(spec, signature=split(terms)[1])
    sizes, _ = tile_sizes(spec, q, k, v, "forward")
    tilings = (block_tables.Tiling(n, x, overhang=True) for n, x in lengths(Frame(q.shape[1], k.shape[1], sizes)))
    return _computing(spec, q, k, v, count(mask, q.shape[0], q.shape[2], *tilings), (sizes.query, sizes.key))


def _computing(spec: Spec, q: Shaped, k: Shaped, v: Shaped, counted: Count, tile: tuple[int, int]) -> float:
    """Seconds for what is counted, by the entry of the table that the call goes by."""
    (t, d), (s, e) = (q.shape[1], q.shape[-1]), (v.shape[1], v.shape[-1])
    entry = tables.find(spec.target.chip, max(d, e), max(t, s), *case_of(spec, t, s, "forward")).entry
    # with rows that fill a tile up; of a partial tile about half
    worked_off = (counted.full + counted.partial / 2) * tile[0] * tile[1]
    return 1e-3 * entry.milliseconds * worked_off / entry.pairs * (d + e) / (2 * entry.d)


def _folded(fold: Fold, counted: Count, h: int, moved: float, chip: chips.Tpu | None) -> float | None:
    """Milliseconds with folded heads: bytes or cycles, whichever take longer, and the first chunk, for which the
    kernel waits."""
    if chip is None:
        return None
    chunks = (counted.full + counted.partial) / h
    cycles = chunks * (_STEP + fold.columns * (_COLUMN + _PAIR * fold.rows)) / chip.cores
    first = moved / max(chunks, 1) / chip.bandwidth * chip.cores
    return 1e3 * (max(moved / chip.bandwidth, cycles / chip.clock) + first)
