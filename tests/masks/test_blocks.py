"""Block-sparse masks of a static layout, of all heads or of each."""

from __future__ import annotations

import numpy as np
import pytest

from jattn import masks
from tests.masks.pairs import H, I, J, check_answers, check_formula, every_tiling, tilings_of

RANDOM = np.random.default_rng(0)
LAYOUT, HEADS_LAYOUT = RANDOM.random((4, 5)) < 0.5, RANDOM.random((H, 4, 5)) < 0.5

FORMULAS = {
    "blocks": (masks.blocks(LAYOUT, 4), LAYOUT[I // 4, J // 4]),
    "blocks-heads": (masks.blocks(HEADS_LAYOUT, 4), HEADS_LAYOUT[:, I // 4, J // 4]),
}


@pytest.mark.smoke
@pytest.mark.parametrize("name", FORMULAS)
def test_each_is_its_formula(name):
    check_formula(*FORMULAS[name])


@every_tiling
@pytest.mark.parametrize("name", FORMULAS)
def test_answers(name, tilings):
    check_answers(FORMULAS[name][0], *tilings_of(tilings), exact=True)


def test_a_layout_is_equal_by_value():
    """It is part of the compiled program's key."""
    assert masks.blocks(LAYOUT, 4) == masks.blocks(LAYOUT.tolist(), 4)
    assert hash(masks.blocks(LAYOUT, 4)) == hash(masks.blocks(LAYOUT.copy(), 4))
    assert masks.blocks(LAYOUT, 4) != masks.blocks(~LAYOUT, 4)
    assert masks.blocks(LAYOUT, 4) != masks.blocks(LAYOUT, 5)
    assert masks.blocks(LAYOUT, 4) != masks.blocks(LAYOUT.reshape(5, 4), 4)


@pytest.mark.parametrize("block", [0, -1, 2.0, "4", True])
def test_a_block_that_is_none_is_named(block):
    with pytest.raises(ValueError, match=rf"block must be an int >= 1, got {block!r}"):
        masks.blocks(LAYOUT, block)
