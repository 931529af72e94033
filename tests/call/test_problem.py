"""A call, checked and complete, and what it becomes for backends: products of tiles, and terms between them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn import mods, normalizers, scores
from jattn._call.problem import reduce, tile_width
from jattn._terms import split
from jattn.mods import SoftCap
from jattn.scores import Perceptron, Product
from tests.problems import problem

RANDOM = np.random.default_rng(0)
Q, K, V = (RANDOM.standard_normal(x).astype(np.float32) for x in ((2, 6, 4, 3), (2, 5, 2, 3), (2, 5, 2, 7)))
PER_HEAD = RANDOM.standard_normal((4, 3, 3)).astype(np.float32)


def test_sizes_are_those_of_the_arrays():
    assert problem((Q, K, V), {}).sizes == {"b": 2, "t": 6, "s": 5, "h": 4, "g": 2, "d": 3, "e": 7}
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (Q, K, V)]
    assert problem(tuple(shapes), {}).sizes == problem((Q, K, V), {}).sizes


def test_keys_in_pages_are_as_many_as_the_pages_of_an_example_hold():
    paged = problem((Q, K, V), {"pages": np.zeros((2, 3), np.int32)})
    assert paged.sizes["s"] == 15 and paged.sizes["b"] == 2


@pytest.mark.parametrize(("b", "t", "s"), [(0, 6, 5), (2, 0, 5), (2, 6, 0), (2, 6, 5)])
def test_a_call_of_nothing_is_known_to_be_one(b, t, s):
    assert problem((Q[:b, :t], K[:b, :s], V[:b, :s]), {}).empty == (0 in (b, t, s))


SCORES = {
    "dot": scores.dot(),
    "general": scores.general(PER_HEAD[0]),
    "general of each head": scores.general(PER_HEAD),
    "cosine": scores.cosine(2.0),
    "concat": scores.concat(PER_HEAD[0, 0], PER_HEAD[0, 1]),
    "additive": scores.additive(PER_HEAD[0], PER_HEAD[1], PER_HEAD[2, 0]),
}


@pytest.mark.parametrize("name", SCORES)
def test_a_score_becomes_a_comparison_of_two_tiles(name):
    """Of what it makes of queries and keys, against its definition for each head."""
    whole = problem((Q, K, V), {"score": SCORES[name]})
    tiled = reduce(whole)
    group = tiled.query.shape[2] // tiled.key.shape[2]
    i, j = jnp.arange(6)[:, None], jnp.arange(5)[None]
    for b, h in ((0, 0), (1, 3)):
        operands = [_of_head(x, a, b, h) for x, a in zip(tiled.operands, tiled.signature.axes, strict=True)]
        terms = tiled.signature.fill(operands)
        got = terms.scores(tiled.query[b, :, h], tiled.key[b, :, h // group], i, j)
        weights, signature = split(whole.score)
        definition = signature.fill(_of_head(x, a, b, h) for x, a in zip(weights, signature.axes, strict=True))
        wanted = definition(jnp.asarray(Q[b, :, h]), jnp.asarray(K[b, :, h // 2]))
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def _of_head(x, axes, b, h):
    """An operand's part for one head, broadcastable to its scores where it has positions."""
    for axis, at in (("b", b), ("h", h)):
        x = x[at] if axis in axes else x
    return x.reshape([n if a in axes else 1 for a, n in (("t", 6), ("s", 5))]) if {*axes} & {*"ts"} else x


def test_values_have_a_head_for_each_of_the_keys():
    """A score that projects keys for every query head apart leaves values as many heads as keys then have."""
    tiled = reduce(problem((Q, K, V), {"score": SCORES["general of each head"]}))
    assert tiled.key.shape[2] == tiled.value.shape[2]
    np.testing.assert_array_equal(reduce(problem((Q, K, V), {})).value, V)


def test_mods_of_the_normaliser_come_last_and_precision_is_the_products():
    key = jax.random.key(0)
    given = {"mods": mods.softcap(3.0), "normalizer": normalizers.gumbel(key), "precision": "highest"}
    tiled = reduce(problem((Q, K, V), given))
    terms = tiled.signature.fill(tiled.operands)
    assert [type(x) for x in terms.mods[:1]] == [SoftCap] and len(terms.mods) == 2
    assert isinstance(terms.compare, Product) and terms.compare.precision == jax.lax.Precision.HIGHEST


def test_a_row_that_is_not_finite_is_nan_where_it_is_seen_and_nowhere_else():
    """Weights of a score are multiplied with 0 in its place, so that no other row's gradient is NaN."""
    q = Q.copy()
    q[0, 1, 2] = np.inf
    query = np.asarray(reduce(problem((q, K, V), {"score": SCORES["general"]})).query)
    assert np.isnan(query[0, 1, 2]).all()
    assert np.isfinite(np.delete(query.reshape(-1, query.shape[-1]), 1 * 4 + 2, axis=0)).all()


def test_keys_of_8_bits_stay_as_they_are_stored():
    narrow = [np.ones(x.shape, np.int8) for x in (K, V)]
    ones = [np.ones(x.shape[:3], np.float32) for x in (K, V)]
    whole = problem((Q, *narrow), {"scales": ones})
    assert reduce(whole).key.dtype == jnp.int8


def test_a_tile_holds_a_number_for_each_pair_or_the_hidden_vector_of_one():
    for name, width in (("dot", 1), ("additive", 3)):
        tiled = reduce(problem((Q, K, V), {"score": SCORES[name]}))
        terms = tiled.signature.fill(tiled.operands)
        assert isinstance(terms.compare, Perceptron) == (name == "additive")
        assert tile_width(terms, tiled.query) == width
