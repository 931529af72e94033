"""Masks that a user writes as a function, which are looked at pair by pair where that is worth it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import core

import jattn
from jattn import _terms, masks, operand
from jattn._terms import Origin, block_tables
from jattn._terms.block_tables import Tiling
from tests.masks.pairs import (
    LONG,
    SHORT,
    H,
    I,
    J,
    check_answers,
    check_formula,
    every_tiling,
    per_batch,
    table,
    tilings_of,
)
from tests.problems import problem

FORMULAS = {
    "function": (masks.function(lambda i, j: (i * j) % 3 == 0), (I * J) % 3 == 0),
    "function-of-keys": (masks.function(lambda i, j: j % 2 == 0), J % 2 == 0),
    "function-operands": (
        masks.function(lambda i, j, n, m: (j < n) & (i != m), operand(SHORT, "b"), operand(LONG % H, "b")),
        (per_batch(SHORT) > J) & (per_batch(LONG % H) != I),
    ),
}


@pytest.mark.smoke
@pytest.mark.parametrize("name", FORMULAS)
def test_each_is_its_formula(name):
    check_formula(*FORMULAS[name])


@every_tiling
@pytest.mark.parametrize("name", FORMULAS)
def test_answers(name, tilings):
    check_answers(FORMULAS[name][0], *tilings_of(tilings), exact=name != "function-operands")


def test_static_functions_are_looked_at_while_tracing():
    looked = []

    def fn(i, j):
        looked.append(not isinstance(i, core.Tracer))
        return i >= j

    mask = masks.function(fn)
    x = jax.ShapeDtypeStruct((1, 16, 1, 4), jnp.float32)
    jax.jit(functools.partial(jattn.attention, mask=mask, blocks=(4, 4))).lower(x, x, x)
    assert any(looked)
    assert not all(looked)  # the partial blocks
    np.testing.assert_array_equal(table(mask).full[0, 0], [0, 1, 2, 3])
    calls = len(looked)
    table(mask)
    assert len(looked) == calls  # once for each table


def test_static_functions_of_many_pairs_are_not_looked_at():
    """Looking at more than 2^30 pairs takes longer than it is worth."""
    looked = []

    def fn(i, j):
        looked.append((i.shape, j.shape))
        return i >= j

    mask = masks.function(fn)
    looked.clear()
    got = table(mask, (2**16, 2**14), (2**15, 2**14))
    assert not looked
    np.testing.assert_array_equal(got.partial[0, 0], [2, 2, 2, 2])
    assert not got.full.any()


def test_a_function_of_the_head_skips_blocks_of_each_head():
    x = jax.random.normal(jax.random.key(0), (2, 24, 2, 4))
    later = masks.function(lambda b, h, i, j: j <= i - 8 * h)
    plan = jattn.explain(x, x, x, mask=later, blocks=(8, 8), implementation="blockwise")
    assert plan.blocks == (4 * 3, 4 * 5, 4 * 1)  # empty, partial and full, of all heads, which one step takes together
    bound = _terms.bind(problem((x, x, x), {"mask": later}).mask, *Origin().indices(2, 2))
    some, every = (np.asarray(y) for y in block_tables.answers(bound, *[Tiling(24, 8)] * 2))
    assert some.sum((-1, -2)).tolist() == [[6, 3]] and every.sum((-1, -2)).tolist() == [[3, 1]]
    options = {"mask": later, "blocks": (8, 8), "implementation": "blockwise"}
    got = jax.jit(jax.vmap(lambda x: jattn.attention(x, x, x, **options)))(x)
    wanted = jattn.attention(x, x, x, mask=np.stack([np.tri(24, k=-8 * h, dtype=bool) for h in range(2)]))
    np.testing.assert_allclose(got, wanted, atol=1e-6)
    of_batch = masks.function(lambda b, h, i, j: j <= i - 8 * b)
    assert jattn.explain(x, x, x, mask=of_batch, blocks=(8, 8), implementation="blockwise").blocks == (0, 36, 0)
