"""A user's functions: the tiles and positions that they get, and arrays without axes."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jattn import mods, operand
from tests.mods.formulas import SIZES, TILES, I, J, agree, blockwise, plain
from tests.tolerances import assert_close


@pytest.mark.parametrize("blocks", TILES[::3])
def test_function_gets_tiles_and_positions(draw, blocks):
    shapes = set()

    def fn(score, i, j, *tiles):
        assert i.dtype == j.dtype == jnp.int32
        shapes.add((score.shape, i.shape, j.shape, *(x.shape for x in tiles)))
        b, h, t, s, ts, table = tiles
        return score * b + jnp.sin(h * i) * t + jnp.cos(s * j) + ts + table[2]

    named = ["b", "h", "bt", "hs", "ts"]
    arrays = *draw.inputs(), *(draw.normal(a) for a in named), draw.normal("h", 3)

    def got(q, k, v, *rest):
        operands = [operand(x, a) for x, a in zip(rest, [*named, "h"], strict=True)]
        return blockwise(blocks)(q, k, v, mods=mods.function(fn, *operands))

    def wanted(q, k, v, b, h, t, s, ts, table):
        h, table = h[:, None, None], table[:, 2, None, None]
        change = lambda x: x * b[:, None, None, None] + jnp.sin(h * I) * t[:, None, :, None]
        return plain(q, k, v, lambda x: change(x) + jnp.cos(s[:, None] * J) + ts + table)

    agree(got, wanted, arrays)
    rows, columns = (-(-n // -(-n // m)) for n, m in zip((SIZES.t, SIZES.s), blocks, strict=True))
    tile = (rows, columns), (rows, 1), (1, columns), (), (), (rows, 1), (1, columns), (rows, columns), (3,)
    assert tile in shapes
    checked = {1009: rows, 2003: columns, 1013: rows, 2011: columns}  # the two tiles on which it is checked
    probe = lambda x: tuple(checked.get(n, n) for n in x)
    assert {tuple(map(probe, x)) for x in shapes} == {tile}


def test_function_of_a_static_array_without_axes(draw):
    q, k, v = draw.inputs()
    got = blockwise()(q, k, v, mods=mods.function(lambda s, i, j, c: s * c[1], np.array([2.0, 3.0])))
    assert_close(got, plain(q, k, v, lambda x: 3 * x), 2e-14)
