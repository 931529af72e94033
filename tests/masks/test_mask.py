"""Masks joined with `&`, `|` and `~`, and what holds for all of them."""

from __future__ import annotations

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from jattn import masks
from jattn._terms.block_tables import Tiling
from tests import strategies
from tests.masks.pairs import (
    SHORT,
    SIZES,
    B,
    I,
    J,
    S,
    T,
    check_answers,
    check_formula,
    every_tiling,
    per_batch,
    tilings_of,
)

RANDOM = np.random.default_rng(0)
Q_IDS, K_IDS = (np.sort(RANDOM.integers(0, 5, (B, n)), axis=-1) for n in (T, S))
LAYOUT = RANDOM.random((4, 5)) < 0.5

FORMULAS = {
    "and": (masks.causal() & masks.dilated(2), (I >= J) & ((I - J) % 2 == 0)),
    "or": (masks.causal(-5) | masks.prefix(SHORT), (I - 5 >= J) | (per_batch(SHORT) > J)),
    "not": (~masks.window(3, 2), (J < I - 3) | (J > I + 2)),
    "nested": (
        ~(masks.causal() & ~masks.segments(Q_IDS, K_IDS)) | masks.prefix(2),
        ~((I >= J) & (Q_IDS[:, None, :, None] != K_IDS[:, None, None])) | (J < 2),
    ),
}


@pytest.mark.smoke
@pytest.mark.parametrize("name", FORMULAS)
def test_each_is_its_formula(name):
    check_formula(*FORMULAS[name])


@every_tiling
@pytest.mark.parametrize("name", FORMULAS)
def test_answers(name, tilings):
    check_answers(FORMULAS[name][0], *tilings_of(tilings), exact=name == "not")


def test_masks_combine_only_with_masks():
    mask = masks.causal()
    for use in (bool, lambda m: m and m, lambda m: not m, lambda m: m or None):
        with pytest.raises(TypeError, match="combine masks with & | ~"):
            use(mask)
    for other in (True, 1, None, np.ones((T, S), bool), jnp.ones((T, S), bool), lambda i, j: i >= j):
        for use in (lambda m, x: m & x, lambda m, x: x & m, lambda m, x: m | x, lambda m, x: x | m):
            with pytest.raises(TypeError):
                use(mask, other)


def test_static_masks_are_equal_by_value():
    """They are part of the compiled program's key."""
    make = lambda: masks.causal(2) & ~masks.blocks(LAYOUT, 4) | masks.prefix(3) & masks.dilated(2)
    assert make() == make()
    assert hash(make()) == hash(make())
    assert make() != make() & masks.causal(3)
    assert masks.blocks(LAYOUT, 4) != masks.blocks(~LAYOUT, 4)
    assert not jax.tree.leaves(make())


# Whole blocks

TILINGS = st.tuples(st.sampled_from([1, 4, 5, 13]), st.sampled_from([1, 5, 6, 17])).map(
    lambda x: (Tiling(T, x[0]), Tiling(S, x[1]))
)


@hypothesis.settings(max_examples=100)
@hypothesis.given(st.data())
def test_answers_of_single_static_masks_are_exact(data):
    mask = data.draw(strategies.static_masks(SIZES))
    if isinstance(mask, masks.Window) and None not in (mask.left, mask.right):
        hypothesis.assume(mask.left + mask.right >= 0)  # one that contradicts itself is only on the safe side
    check_answers(mask, *data.draw(TILINGS), exact=True)


@hypothesis.settings(max_examples=40)
@hypothesis.given(st.data())
def test_answers_are_on_the_safe_side(data):
    leaves = strategies.static_masks(SIZES) | strategies.traced_masks(SIZES)
    check_answers(data.draw(strategies.algebra(leaves)), *data.draw(TILINGS))
