"""How many tiles are of each kind, and which pairs they hold, against a look at every pair."""

from __future__ import annotations

import numpy as np
import pytest

from jattn import masks
from jattn._terms.block_tables import Tiling
from jattn.backends.pallas.count import count

MASKS = {
    "none": None,
    "causal": masks.causal(),
    "window": masks.window(9, 3),
    "nothing": masks.prefix(0),
    "prefix": masks.prefix(8),
    "holes": masks.dilated(3),
}


@pytest.mark.parametrize(("t", "s", "rows", "columns"), [(16, 24, 4, 8), (17, 23, 4, 8), (1, 1, 4, 8), (8, 8, 8, 8)])
@pytest.mark.parametrize("name", MASKS)
def test_tiles_are_as_the_mask_has_them(name, t, s, rows, columns):
    """The last ones hang over: what is past the ends is of no tile's kind, and no pair."""
    mask, b, h = MASKS[name], 2, 3
    got = count(mask, b, h, Tiling(t, rows, overhang=True), Tiling(s, columns, overhang=True))
    pairs = np.ones((t, s), bool) if mask is None else np.asarray(mask(np.arange(t)[:, None], np.arange(s)[None]))
    tiles = [pairs[i : i + rows, j : j + columns] for i in range(0, t, rows) for j in range(0, s, columns)]
    empty = sum(not x.any() for x in tiles)
    visited = sum(x.size for x in tiles if x.any())
    assert got.empty == b * h * empty
    assert got.pairs == b * h * visited
    assert sum(got.blocks) == b * h * len(tiles)
    whole = sum(bool(x.all()) for x in tiles)
    hanging = sum(bool(x.all()) and x.shape != (rows, columns) for x in tiles)
    assert b * h * (whole - hanging) <= got.full <= b * h * whole  # one that hangs over may have to look


def test_layouts_of_each_head_are_counted_for_each():
    layout = np.array([[[True, False], [False, False]], [[True, True], [True, True]]])
    mask = masks.blocks(layout, 4)
    got = count(mask, 3, 2, Tiling(8, 4, overhang=True), Tiling(8, 4, overhang=True))
    assert got.blocks == (3 * 3, 0, 3 * 5) and got.pairs == 3 * 5 * 16
