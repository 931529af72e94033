"""Boolean arrays as masks, of every shape that broadcasts."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from jattn import masks
from tests.masks.pairs import B, H, S, T, check_answers, check_formula, every_tiling, seen, tilings_of

RANDOM = np.random.default_rng(0)
FLAGS = {shape: RANDOM.random(shape) < 0.5 for shape in itertools.product((1, B), (1, H), (1, T), (1, S))}
FLAGS |= {shape: RANDOM.random(shape) < 0.5 for shape in [(), (S,), (T, 1), (T, S), (H, 1, 1), (H, T, S)]}
FORMULAS = {f"dense-{shape}": (masks.dense(x), x) for shape, x in FLAGS.items()}


@pytest.mark.smoke
@pytest.mark.parametrize("name", FORMULAS)
def test_each_is_its_formula(name):
    check_formula(*FORMULAS[name])


@every_tiling
@pytest.mark.parametrize("name", FORMULAS)
def test_answers(name, tilings):
    check_answers(FORMULAS[name][0], *tilings_of(tilings), exact=True)


def test_arrays_are_masks():
    for shape in [(B, 1, T, S), (T, S)]:
        np.testing.assert_array_equal(seen(FLAGS[shape]), np.broadcast_to(FLAGS[shape], (B, H, T, S)))
        np.testing.assert_array_equal(seen(jnp.asarray(FLAGS[shape])), seen(FLAGS[shape]))
