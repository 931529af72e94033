"""Which parts of a step are computed: under a causal mask whole rectangles without a mask, or nothing."""

from __future__ import annotations

import numpy as np
import pytest
from jattn_kernels.tiles.work import EMPTY, PARTIAL

from jattn import masks, mods
from jattn._terms import Terms
from jattn.parallel._ring.pieces import Pieces
from jattn.parallel._shares import Shares

DEVICES, OWN = 4, 8  # and how many positions each of them has


def pieces(zigzag: bool, **terms) -> Pieces:
    return Pieces(Terms(None, **terms), OWN, OWN, Shares(DEVICES, zigzag))


WHOLE, HALF = (0, OWN), OWN // 2


@pytest.mark.parametrize(
    ("zigzag", "earlier", "later"),
    [(False, (WHOLE, WHOLE), None), (True, (WHOLE, (0, HALF)), ((HALF, HALF), WHOLE))],
)
def test_causal_steps(zigzag, earlier, later):
    """Of keys of an earlier device, and of a later one: in order nothing is computed, in zig-zag order as much."""
    rectangles = pieces(zigzag, mask=masks.causal()).rectangles()
    assert rectangles is not None
    which, found = rectangles
    for me, source in np.ndindex(DEVICES, DEVICES):
        assert found[which[me, source]] == (None if me == source else earlier if source < me else later)


def test_a_first_step_in_order_is_a_call_by_itself():
    assert pieces(True, mask=masks.causal()).in_order
    assert not pieces(True, mask=masks.window(3)).in_order
    assert not pieces(True, mask=masks.causal(), mods=(mods.alibi(np.ones(2)),)).in_order


def test_what_is_hidden_in_part_is_computed_by_chunks():
    of = pieces(True, mask=masks.window(2))
    assert of.rectangles() is None
    assert {x.kinds for x in of.groups(False)} == {(EMPTY, PARTIAL)}
    assert [x.level for x in of.groups(True)] == [True, False]


def test_kinds_of_what_depends_on_arrays_are_known_at_run_time():
    assert pieces(False, mask=masks.segments(np.zeros((1, 32), np.int32))).table is None
