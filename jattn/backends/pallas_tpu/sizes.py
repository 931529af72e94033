"""Tile sizes of a call on TPU."""

from __future__ import annotations

import dataclasses
import math

from jattn_kernels import chips, tables
from jattn_kernels.tiles.work import RUN, Direction
from jattn_kernels.tpu.sizes import LANES, TileSizes

from jattn._terms import Operand
from jattn._terms.moved import moved
from jattn.backends.contract import Shaped, Spec
from jattn.backends.pallas.terms import terms_of
from jattn.backends.pallas.work import MOST_SCALARS, class_of

_ROWS = 2**20  # bytes of an array in a backward tile at most: the largest of the table, which was tuned for 16 bits


def case_of(spec: Spec, t: int, s: int, direction: Direction) -> tuple[str, str]:
    """Mask class and pass, as the tables name them."""
    return class_of(moved(terms_of(spec)), t, s), direction


def tile_sizes(spec: Spec, q: Shaped, k: Shaped, v: Shaped, direction: Direction) -> tuple[TileSizes, str]:
    """The tile sizes of a call and where they come from."""
    if (given := getattr(spec.backend.settings, direction)) is not None:
        return given, "as set"
    t, s, d = q.shape[1], k.shape[1], max(q.shape[-1], v.shape[-1])
    tuned = tables.find(spec.target.chip, d, max(t, s), *case_of(spec, t, s, direction))
    sizes, source = TileSizes(**tuned.entry.sizes), str(tuned)
    query, key, chunk = sizes.query, sizes.key, sizes.chunk
    width = d * max(q.dtype.itemsize, k.dtype.itemsize, v.dtype.itemsize)  # bytes
    if direction == "backward":  # a tile holds rows of queries, keys, values and the gradients of all of them
        query, key = (min(x, max(LANES, 1 << (_ROWS // width).bit_length() - 1)) for x in (query, key))
    if spec.blocks is not None:
        (query, key), source = spec.blocks, "as asked for"
    if any("t" in axes and "s" in axes for axes in spec.signature.axes):  # two of their blocks in an eighth of memory
        query, key = min(query, 512), min(key, 512)
        chunk = min(chunk, (chips.tpu(spec.target.chip) or chips.SMALLEST_TPU).granted // (8 * 8 * query))
    step = sizes.step
    terms = terms_of(spec)
    if terms.mods or terms.gates or isinstance(terms.compare.scale, Operand):  # several numbers for each score
        step, chunk = min(step, 256), chunk // 2
    query, key = (min(x, -(-n // LANES) * LANES) for x, n in ((query, t), (key, s)))
    query = max(query, -(-t * RUN // MOST_SCALARS))
    query, key = (-(-x // LANES) * LANES for x in (query, key))
    most = chunk * tuned.entry.d * 2 // width
    chunk = max(key, min(chunk, most, -(-s // key) * key) // key * key)
    rows = sizes.height if query % sizes.height == 0 else 0
    return dataclasses.replace(sizes, query=query, key=key, step=math.gcd(key, step), chunk=chunk, rows=rows), source
