"""How a call is cut, for `jattn.explain`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jattn._terms import block_tables
from jattn.backends.blockwise.sizes import geometry, on_gpu
from jattn.backends.contract import Cut, Shaped, Spec
from jattn.masks import Mask


def cut(
    spec: Spec,
    q: Shaped,
    k: Shaped,
    v: Shaped,
    operands: Sequence[Shaped],
    mask: Mask | None,
    known: bool,
) -> Cut:
    """How the call is cut; blocks are counted where the mask is `known`."""
    geo = geometry(spec, q, k, v, operands)
    tile = geo.query.block, geo.key.block
    source = "estimated: kernels launched, against work" if on_gpu(spec.target) and spec.blocks is None else None
    if not known:
        return Cut(tile, None, source)
    heads = geo.heads * geo.group
    table = block_tables.table(mask, geo.query, geo.key, geo.batch, heads)
    full, partial = (np.asarray(x) for x in (table.full, table.partial))
    rows = (geo.b // geo.batch, geo.h // heads, geo.query.count)
    alike = geo.batch * heads  # every row of the table stands for this many batch elements and heads
    full, partial = (int(np.broadcast_to(x, rows).sum()) * alike for x in (full, partial))
    return Cut(tile, (geo.b * geo.h * geo.query.count * geo.key.count - full - partial, partial, full), source)
