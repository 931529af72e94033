"""A softmax over keys that arrive a tile at a time, against all of them at once in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jattn_kernels import online_softmax
from jattn_kernels.online_softmax import State

ROWS, S, E = (2, 3), 7, 4
RANDOM = np.random.default_rng(0)
SCORES = jnp.asarray(np.round(4 * RANDOM.standard_normal((*ROWS, S))) / 4, jnp.float32)
VALUES = jnp.asarray(RANDOM.standard_normal((S, E)), jnp.float32)


def _tiles(scores, values, cuts):
    """Output, lse and remainder of tiles of so many keys, by the steps that the backend takes."""
    state = online_softmax.start(scores.shape[:-1], values.shape[-1], scores.dtype)
    for at, size in zip(np.cumsum([0, *cuts[:-1]]), cuts, strict=True):
        tile = slice(at, at + size)
        top, raised, factor = online_softmax.exponentials(state, scores[..., tile])
        total = state.total * factor + raised.sum(-1)
        state = State(top, total, state.out * factor[..., None] + raised @ values[tile])
    return online_softmax.finish(state)


@pytest.mark.parametrize("cuts", [(7,), (3, 4), (1, 2, 4), (1,) * 7])
@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
def test_tiles_in_any_number_give_all_at_once(cuts, shift):
    out, lse, _ = _tiles(SCORES + shift, VALUES, cuts)
    scores = np.asarray(SCORES, np.float64)
    total = np.exp(scores).sum(-1)
    np.testing.assert_allclose(lse, np.log(total) + shift, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
        out, np.exp(scores) @ np.asarray(VALUES, np.float64) / total[..., None], rtol=1e-5, atol=1e-6
    )


def test_rows_that_have_seen_nothing_give_0_and_minus_infinity():
    hidden = SCORES.at[0].set(-jnp.inf)
    out, lse, rest = _tiles(hidden, VALUES, (3, 4))
    assert not out[0].any() and np.isneginf(lse[0]).all() and not rest[0].any()
    assert np.isfinite(out[1]).all() and np.isfinite(lse[1]).all()
    start = online_softmax.start(ROWS, E, jnp.float32)
    for got, wanted in zip(online_softmax.finish(start), (0, -np.inf, 0), strict=True):
        assert (got == wanted).all()


def test_a_tile_that_shows_nothing_changes_nothing():
    before = _tiles(SCORES[..., :3], VALUES[:3], (3,))
    after = _tiles(SCORES.at[..., 3:].set(-jnp.inf), VALUES, (3, 4))
    first = _tiles(jnp.roll(SCORES.at[..., 3:].set(-jnp.inf), 4, -1), jnp.roll(VALUES, 4, 0), (4, 3))
    for x, y, z in zip(before, after, first, strict=True):
        np.testing.assert_allclose(y, x, rtol=1e-6)
        np.testing.assert_allclose(z, x, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_no_weights_could_stand_for_is_nan_in_its_row_alone(bad):
    out, lse, _ = _tiles(SCORES.at[1, 2, 5].set(bad), VALUES, (3, 4))
    assert np.isnan(out[1, 2]).all() and np.isnan(lse[1, 2])
    assert np.isfinite(out[0]).all() and np.isfinite(lse[1, :2]).all()


def test_what_rounding_takes_from_lse_is_kept():
    """A float32 of -1e9 has no place for the log of a sum: n equal scores are 1 / n each all the same."""
    scores = jnp.full((1, S), -1e9)
    _, lse, rest = _tiles(scores, VALUES, (3, 4))
    assert float(lse[0]) == -1e9
    np.testing.assert_allclose(rest, np.log(S), rtol=1e-6)
    np.testing.assert_allclose(jnp.exp(scores[0] - lse - rest), 1 / S, rtol=1e-6)


def test_a_tile_without_a_past_is_all_there_is():
    top, raised, factor = online_softmax.exponentials(None, SCORES)
    np.testing.assert_array_equal(top, SCORES.max(-1))
    np.testing.assert_allclose(raised, np.exp(SCORES - SCORES.max(-1, keepdims=True)), rtol=1e-6)
    assert not factor.any()  # of what came before
    assert jax.eval_shape(online_softmax.finish, online_softmax.start((0,), E, jnp.float32))[0].shape == (0, E)
