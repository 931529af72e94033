"""Tables of the blocks that a mask leaves: how many, in which order, joined for steps, and in three numbers a row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jattn import masks, operand
from jattn._terms import Origin, block_tables
from jattn._terms.block_tables import Tiling


def table(mask, query=(16, 4), key=(16, 4), batch=1, heads=1) -> Any:
    return block_tables.table(mask, Tiling(*query), Tiling(*key), batch, heads)


def test_tables_count_blocks():
    got = table(masks.causal())
    assert all(isinstance(x, np.ndarray) for x in got)
    np.testing.assert_array_equal(got.full[0, 0], [0, 1, 2, 3])
    np.testing.assert_array_equal(got.partial[0, 0], [1, 1, 1, 1])
    np.testing.assert_array_equal(got.index[0, 0, 2, :3], [0, 1, 2])
    got = table(~masks.causal())  # the full ones come first
    np.testing.assert_array_equal(got.full[0, 0], [3, 2, 1, 0])
    np.testing.assert_array_equal(got.partial[0, 0], [1, 1, 1, 1])
    np.testing.assert_array_equal(got.index[0, 0, 0], [1, 2, 3, 0])
    np.testing.assert_array_equal(got.index[0, 0, 1, :3], [2, 3, 1])
    got = table(masks.window(3))
    np.testing.assert_array_equal(got.full[0, 0], 0)
    np.testing.assert_array_equal(got.partial[0, 0], [1, 2, 2, 2])
    for mask in (None, masks.window(None, None), masks.dilated(1)):
        np.testing.assert_array_equal(table(mask).full, np.full((1, 1, 4), 4))
        assert not table(mask).partial.any()
    got = table(masks.prefix(0))
    assert not got.full.any()
    assert not got.partial.any()
    got = table(masks.function(lambda i, j, n: j < n, operand(3)))
    np.testing.assert_array_equal(got.partial, np.full((1, 1, 4), 4))


def test_a_static_contradiction_is_empty():
    got = table(masks.prefix(4) & ~masks.prefix(8))
    assert not got.full.any()
    assert not got.partial.any()


def test_tables_of_steps_join_their_batch_elements_and_heads():
    layout = np.zeros((4, 4, 4), bool)
    layout[0, 0, 0] = layout[1, 0, 0] = layout[1, 0, 1] = layout[2:, 0, 3] = True
    mask = masks.blocks(layout, 4).bound(*Origin().indices(1, 4))
    alone = table(mask)
    np.testing.assert_array_equal(alone.full[0, :, 0], [1, 2, 1, 1])
    joined = table(mask, heads=2)  # full for both, partial if for one
    np.testing.assert_array_equal(joined.full[0, :, 0], [1, 1])
    np.testing.assert_array_equal(joined.partial[0, :, 0], [1, 0])
    np.testing.assert_array_equal(joined.index[0, :, 0, 0], [0, 3])
    got = table(masks.prefix(np.array([4, 8, 16, 9])), batch=2)
    np.testing.assert_array_equal(got.full[:, 0, 0], [1, 2])
    np.testing.assert_array_equal(got.partial[:, 0, 0], [1, 2])


def test_a_table_for_shorter_arrays_serves_the_longer():
    """vmap folds an axis into the batch: an array without it is used again for every part."""
    mask = masks.prefix(np.array([4, 8])) & masks.segments(np.zeros((4, 16), np.int32), np.ones((4, 16), np.int32))
    got = table(mask | masks.prefix(np.array([4, 8])))
    np.testing.assert_array_equal(got.full[:, 0, 0], [1, 2, 1, 2])


def test_functions_with_operands_are_partial_everywhere():
    mask = masks.function(lambda i, j, n: j < n, operand(np.array([16, 16]), "b"))
    got = block_tables.answers(mask, Tiling(16, 4), Tiling(16, 4))
    assert got.some.all()
    assert not got.every.any()


@pytest.mark.parametrize("name", ["causal", "window", "not causal", "holes", "nothing"])
def test_long_tables_say_the_same_in_three_numbers_a_row(name):
    mask = {
        "causal": masks.causal(5),
        "window": masks.window(17, 9),
        "not causal": ~masks.causal(),
        "holes": masks.dilated(20),
        "nothing": masks.prefix(0),
    }[name]
    query, key = block_tables.Tiling(60, 4), block_tables.Tiling(50, 3)
    wanted = block_tables.table(mask, query, key)
    got = block_tables.table(mask, query, key, most=20)
    assert isinstance(got.index, block_tables.BlockRuns)
    for row in range(query.count):
        at = (0, 0, row)
        cut = lambda x, at=at: [int(x.block(at, n)) for n in range(int(x.full[at] + x.partial[at]))]
        full = int(got.full[at])
        if name == "holes":  # visits more, never less
            assert full == 0
            assert set(cut(wanted)) <= set(cut(got))
        else:
            assert full == wanted.full[at]
            assert cut(got) == cut(wanted)


def test_answers_of_tiles_that_hang_over():
    tiling = block_tables.Tiling(300, 128, overhang=True)
    assert tiling.range().lo.tolist() == [0, 128, 256]
    assert tiling.range().hi.tolist() == [127, 255, 299]
