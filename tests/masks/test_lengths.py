"""How many keys and queries there are, for all batch elements or for each."""

from __future__ import annotations

import numpy as np
import pytest

from jattn import masks
from tests.masks.pairs import LONG, SHORT, I, J, check_answers, check_formula, every_tiling, per_batch, tilings_of

FORMULAS = {
    "prefix": (masks.prefix(6), J < 6),
    "prefix-nothing": (masks.prefix(0), I != I),
    "prefix-batch": (masks.prefix(SHORT), per_batch(SHORT) > J),
    "prefix-list": (masks.prefix([0, 5]), per_batch(SHORT) > J),
    "prefix-lm": (masks.prefix(6) | masks.causal(), (J < 6) | (I >= J)),
    "lengths": (masks.lengths(LONG), per_batch(LONG) > J),
    "lengths-queries": (masks.lengths(LONG, SHORT), (per_batch(LONG) > J) & (per_batch(SHORT) > I)),
    "lengths-static": (masks.lengths(9, 4), (J < 9) & (I < 4)),
}
SAFE = {"prefix-lm", "lengths-queries", "lengths-static"}
"""Masks of two parts, whose answers are those of each part, and so on the safe side."""


@pytest.mark.smoke
@pytest.mark.parametrize("name", FORMULAS)
def test_each_is_its_formula(name):
    check_formula(*FORMULAS[name])


@every_tiling
@pytest.mark.parametrize("name", FORMULAS)
def test_answers(name, tilings):
    check_answers(FORMULAS[name][0], *tilings_of(tilings), exact=name not in SAFE)


@pytest.mark.parametrize("wrong", [np.ones((2, 1), int), np.ones(2), 1.5], ids=["axes", "floats", "number"])
@pytest.mark.parametrize(
    ("make", "name"),
    [(masks.prefix, "length"), (masks.lengths, "kv"), (lambda x: masks.lengths(3, x), "q")],
    ids=["prefix", "kv", "q"],
)
def test_lengths_that_are_none_are_named(make, name, wrong):
    with pytest.raises(TypeError, match=rf"^{name} must be an int"):
        make(wrong)
