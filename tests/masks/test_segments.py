"""Packed sequences, which attend only to themselves."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import masks
from jattn._terms import block_tables
from jattn._terms.block_tables import Tiling
from tests.cases import Draw, Sizes
from tests.masks.pairs import B, S, T, brute, check_answers, check_formula, every_tiling, tilings_of

RANDOM = np.random.default_rng(0)
Q_IDS, K_IDS = (np.sort(RANDOM.integers(0, 5, (B, n)), axis=-1) for n in (T, S))

FORMULAS = {
    "segments": (masks.segments(Q_IDS, K_IDS), Q_IDS[:, None, :, None] == K_IDS[:, None, None]),
    "segments-for-all": (masks.segments(Q_IDS[0], K_IDS[1]), Q_IDS[0][:, None] == K_IDS[1]),
    "segments-mixed": (masks.segments(Q_IDS, K_IDS[0]), Q_IDS[:, None, :, None] == K_IDS[0]),
}


@pytest.mark.smoke
@pytest.mark.parametrize("name", FORMULAS)
def test_each_is_its_formula(name):
    check_formula(*FORMULAS[name])


@every_tiling
@pytest.mark.parametrize("name", FORMULAS)
def test_answers(name, tilings):
    check_answers(FORMULAS[name][0], *tilings_of(tilings))


@pytest.mark.parametrize("seed", range(5))
def test_answers_of_packed_documents_are_exact(seed):
    """Ids that count up, the same for queries and keys."""
    x = Draw(Sizes(t=S), jnp.float32, seed)
    mask, tilings = masks.segments(x.documents("bs")), (Tiling(S, 4), Tiling(S, 5))
    got, wanted = block_tables.answers(mask, *tilings), brute(mask, *tilings, x.sizes)
    np.testing.assert_array_equal(got.some, wanted.some[:, :1])
    np.testing.assert_array_equal(got.every[..., :-1], wanted.every[:, :1, :, :-1])


def test_ids_of_dtypes_that_one_holds_are_compared_as_numbers():
    q = jnp.ones((1, 8, 1, 4))
    small, large = np.arange(8, dtype=np.uint8), np.arange(8, dtype=np.int32)
    np.testing.assert_array_equal(jattn.weights(q, q, q, mask=masks.segments(small, large))[0, 0], np.eye(8))
