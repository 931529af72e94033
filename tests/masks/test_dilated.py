"""Every so many keys."""

from __future__ import annotations

import pytest

from jattn import masks
from tests.masks.pairs import I, J, check_answers, check_formula, every_tiling, tilings_of

FORMULAS = {
    "dilated": (masks.dilated(3), (I - J) % 3 == 0),
    "dilated-every": (masks.dilated(1), I == I),
}


@pytest.mark.smoke
@pytest.mark.parametrize("name", FORMULAS)
def test_each_is_its_formula(name):
    check_formula(*FORMULAS[name])


@every_tiling
@pytest.mark.parametrize("name", FORMULAS)
def test_answers(name, tilings):
    check_answers(FORMULAS[name][0], *tilings_of(tilings), exact=True)


def test_a_stride_beyond_all_positions_leaves_the_diagonal():
    """A stride that int32 does not hold is the longest that it does."""
    check_formula(masks.dilated(2**40), I == J)


@pytest.mark.parametrize("stride", [0, -2, 2.0, None, True])
def test_a_stride_that_is_none_is_named(stride):
    with pytest.raises(ValueError, match=rf"stride must be an int >= 1, got {stride!r}"):
        masks.dilated(stride)
