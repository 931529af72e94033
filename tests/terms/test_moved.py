"""The mask of a call by the call's own positions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import masks
from jattn._terms import Offsets, Terms, block_tables
from jattn._terms.moved import Moved, moved


def test_where_both_move_together_a_window_stays_static():
    """Its blocks are known while tracing, though where the piece stands is not."""
    x = jax.ShapeDtypeStruct((1, 64, 2, 8), "float32")
    options = {"mask": masks.causal(), "blocks": (16, 16)}
    moved = jax.jit(lambda n: jnp.asarray(jattn.explain(x, x, x, **options, positions={"t": n, "s": n}).blocks))
    np.testing.assert_array_equal(moved(640), jattn.explain(x, x, x, **options).blocks)
    assert jattn.explain(x, x, x, **options, positions=16).blocks == (6, 6, 20)


def test_a_mask_is_told_where_its_call_stands():
    mask = masks.function(lambda i, j: (i + 2 * j) % 5 == 0)
    there = Moved(mask, Offsets(lead=3, first=10))
    i, j = jnp.arange(4)[:, None], jnp.arange(6)[None]
    np.testing.assert_array_equal(there(i, j), (i + 13 + 2 * (j + 10)) % 5 == 0)


ANYWHERE = {
    "causal": masks.causal(),
    "window": masks.window(3, 1) & ~masks.dilated(2),
    "segments": masks.segments(np.arange(6) // 2) | masks.window(2),
}
SOMEWHERE = {
    "prefix": masks.prefix(9),
    "function": masks.function(lambda i, j: i > 8),
    "blocks": masks.causal() & masks.blocks(np.ones((5, 5), bool), 4),
    "not": ~(masks.causal() | masks.lengths(7)),
}


@pytest.mark.parametrize("name", [*ANYWHERE, *SOMEWHERE])
@pytest.mark.parametrize("lead", [0, 2])
def test_only_a_mask_of_differences_forgets_where_both_stand(name, lead):
    """So where that is known at run time alone, such a mask is known while tracing all the same."""
    mask = {**ANYWHERE, **SOMEWHERE}[name]
    known, unknown = (
        moved(Terms(None, mask=mask, offsets=Offsets(lead, first))) for first in (7, jattn.operand(jnp.int32(7)))
    )
    if name in SOMEWHERE:
        assert known == Moved(mask, Offsets(lead, 7))
        assert isinstance(unknown, Moved) and not isinstance(unknown.offsets.first, int)
        return
    for got in (known, unknown):
        assert got is mask if lead == 0 else isinstance(got, Moved) and got.offsets == Offsets(lead, 0)


def test_nothing_is_moved_where_nothing_is_masked_or_nothing_moves():
    assert moved(Terms(None, offsets=Offsets(3, 4))) is None
    mask = masks.prefix(3)
    assert moved(Terms(None, mask=mask)) is mask


@pytest.mark.parametrize("mask", [masks.causal(), masks.prefix(9), masks.window(3, 1), ~masks.lengths(12, 14)], ids=str)
@pytest.mark.parametrize("traced", [False, True])
def test_blocks_are_those_of_the_pairs_there(mask, traced):
    lead, first = 3, 5
    query, key = block_tables.Tiling(8, 4), block_tables.Tiling(12, 4)
    offsets = Offsets(*(jattn.operand(jnp.int32(x)) if traced else x for x in (lead, first)))
    some, every = block_tables.answers(Moved(mask, offsets), query, key)
    i, j = jnp.arange(8)[:, None] + lead + first, jnp.arange(12)[None] + first
    tiles = np.asarray(mask(i, j)).reshape(2, 4, 3, 4)
    np.testing.assert_array_equal(np.asarray(some)[0, 0], tiles.any((1, 3)))
    np.testing.assert_array_equal(np.asarray(every)[0, 0], tiles.all((1, 3)))
