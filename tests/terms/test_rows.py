"""Sums over rows of scores, against NumPy in float64; rows of nothing, of infinities, and of numbers of any size."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn._terms import rows

SCORES = jax.random.normal(jax.random.key(0), (4, 7))
INF, NAN = np.inf, np.nan
WIDTHS = [1, 7]


def _plain(scores):
    return np.log(np.exp(np.asarray(scores, np.float64)).sum(-1))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
def test_the_log_of_a_sum_is_that_of_numpy_wherever_scores_lie(width, shift):
    scores = jnp.round(SCORES[:, :width] * 4) / 4
    np.testing.assert_allclose(rows.logsumexp(scores + shift), _plain(scores) + shift, rtol=1e-6, atol=1e-6)


def test_a_row_of_nothing_has_no_sum_and_gradient_0():
    hidden = jnp.full((2, 3), -jnp.inf)
    raised, total, top = rows.exponentials(hidden)
    assert not raised.any() and (total == 1).all() and np.isneginf(top).all()
    assert np.isneginf(rows.logsumexp(hidden)).all()
    gradient = jax.grad(lambda x: jnp.sum(jnp.where(jnp.isneginf(y := rows.logsumexp(x)), 0, y)))(hidden)
    assert not gradient.any()
    assert np.isneginf(rows.row_max(jnp.zeros((2, 0)))).all()
    assert np.isneginf(rows.logsumexp(jnp.zeros((2, 0)))).all()


def test_the_gradient_of_the_log_of_a_sum_is_the_softmax():
    scores = SCORES.at[0, 3].set(-INF)
    got = jax.grad(lambda x: jnp.sum(rows.logsumexp(x)))(scores)
    weights = np.exp(np.asarray(scores, np.float64))
    np.testing.assert_allclose(got, weights / weights.sum(-1, keepdims=True), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bad", [INF, NAN])
def test_what_no_weights_could_stand_for_is_nan(bad):
    scores = SCORES.at[1, 2].set(bad)
    for got in (rows.logsumexp(scores)[:, None], rows.lowered(scores)):
        assert np.isnan(got[1]).all()
        assert np.isfinite(np.delete(got, 1, axis=0)).all()


def test_rows_are_lowered_to_0_and_those_of_nothing_stay():
    scores = SCORES.at[2].set(-INF)
    got = np.asarray(rows.lowered(scores))
    np.testing.assert_allclose(got[:2], scores[:2] - scores[:2].max(-1, keepdims=True), rtol=1e-6)
    assert np.isneginf(got[2]).all()


def test_a_row_that_is_not_finite_is_0_and_makes_nan_of_what_it_is_added_to():
    x = np.array([[1.0, 2.0], [INF, 0.0], [3.0, NAN], [-INF, 1.0]], np.float32)
    held, flaw = rows.finite_rows(jnp.asarray(x))
    np.testing.assert_array_equal(held, [[1, 2], [0, 0], [0, 0], [0, 0]])
    assert np.isnan(flaw).ravel().tolist() == [False, True, True, True] and flaw[0] == 0
    empty, none = rows.finite_rows(jnp.zeros((2, 0)))
    assert empty.shape == (2, 0) and not none.any()


def test_a_row_that_is_not_finite_passes_no_gradient_that_is_none():
    x = jnp.array([[1.0, 2.0], [jnp.inf, 0.0]])
    weight = jnp.ones((2, 3))
    of = lambda w: jnp.sum((rows.finite_rows(x)[0] @ w)[:1])
    assert jax.grad(of)(weight).tolist() == [[1.0] * 3, [2.0] * 3]


def test_a_flaw_is_0_or_nan_and_has_no_gradient():
    got = rows.flaw(jnp.array([1.0, jnp.inf, -jnp.inf, jnp.nan, 0.0]))
    assert np.isnan(got).tolist() == [False, True, True, True, False]
    assert jax.grad(rows.flaw)(jnp.float32(2)) == 0


# Sinks


@pytest.mark.parametrize("sink", [-3.0, 0.0, 50.0, -INF])
def test_a_sink_is_one_more_key(sink):
    lse = rows.logsumexp(SCORES)
    share, with_it = rows.with_sink(lse, jnp.float32(sink))
    both = np.concatenate([np.asarray(SCORES, np.float64), np.full((4, 1), sink)], -1)
    np.testing.assert_allclose(with_it, _plain(both), rtol=1e-6)
    np.testing.assert_allclose(share, np.exp(_plain(SCORES) - _plain(both)), rtol=1e-5)


def test_a_row_of_nothing_but_a_sink_has_the_sink():
    share, lse = rows.with_sink(jnp.full(2, -jnp.inf), jnp.float32(0.5))
    assert not share.any() and (lse == 0.5).all()
    share, lse = rows.with_sink(jnp.full(2, -jnp.inf), jnp.float32(-jnp.inf))
    assert not share.any() and np.isneginf(lse).all()


# Parts of the keys


@pytest.mark.parametrize("cuts", [(7,), (3,), (1, 2), (0, 3, 3)])
def test_parts_of_the_keys_are_joined(cuts):
    values = np.random.default_rng(1).standard_normal((7, 2)).astype(np.float32)

    def part(at):
        scores = np.asarray(SCORES[:, at], np.float64)
        lse = _plain(scores) if scores.size else np.full(4, -INF)
        weights = np.exp(scores - lse[:, None]) if scores.size else scores
        return jnp.asarray(weights @ values[at], jnp.float32), jnp.asarray(lse, jnp.float32)

    bounds = [0, *cuts, 7]
    got = rows.merged([part(slice(a, b)) for a, b in itertools.pairwise(bounds)])
    for x, wanted in zip(got, part(slice(None)), strict=True):
        np.testing.assert_allclose(x, wanted, rtol=2e-6, atol=1e-6)


def test_a_part_that_saw_nothing_counts_for_nothing_and_the_first_says_the_dtype():
    seen = jnp.ones((1, 2), jnp.bfloat16), jnp.zeros(1)
    blind = jnp.full((1, 2), jnp.nan), jnp.full(1, -jnp.inf)
    out, lse = rows.merged([seen, blind])
    assert out.dtype == jnp.bfloat16 and out.tolist() == [[1, 1]] and lse.tolist() == [0]
    out, lse = rows.merged([blind, blind])
    assert not out.any() and np.isneginf(lse).all()
