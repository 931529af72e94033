"""Normalisers against their definitions: projections by bisection, gradients by finite differences, draws by counting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import normalizers

ROWS = np.random.default_rng(0).normal(size=(7, 11)) * 3


def _bisect(row: np.ndarray, weight) -> np.ndarray:
    """The weights of the threshold tau at which they sum to 1."""
    lo, hi = row.min() - 2, row.max()
    for _ in range(200):
        tau = (lo + hi) / 2
        lo, hi = (tau, hi) if weight(row, tau).sum() > 1 else (lo, tau)
    return weight(row, (lo + hi) / 2)


EXACT = {
    "softmax": lambda row: np.exp(row) / np.exp(row).sum(),
    "sigmoid": lambda row: 1 / (1 + np.exp(-row)),
    "sparsemax": lambda row: _bisect(row, lambda z, tau: np.maximum(z - tau, 0)),
    "entmax15": lambda row: _bisect(row / 2, lambda z, tau: np.maximum(z - tau, 0) ** 2),
    "hard": lambda row: np.eye(len(row))[row.argmax()],
}


@pytest.mark.smoke
@pytest.mark.parametrize("name", EXACT)
def test_definition(x64, name):
    got = getattr(normalizers, name)()(jnp.asarray(ROWS))
    np.testing.assert_allclose(got, [EXACT[name](row) for row in ROWS], atol=1e-12)


@pytest.mark.parametrize("name", ["softmax", "sigmoid", "sparsemax", "entmax15"])
def test_gradient(x64, name):
    fn = getattr(normalizers, name)()
    direction = np.random.default_rng(1).normal(size=ROWS.shape)
    got = jax.jvp(fn, (jnp.asarray(ROWS),), (jnp.asarray(direction),))[1]
    h = 1e-6
    np.testing.assert_allclose(got, (fn(ROWS + h * direction) - fn(ROWS - h * direction)) / (2 * h), atol=1e-7)
    pulled = jax.vjp(fn, jnp.asarray(ROWS))[1](jnp.asarray(direction))[0]
    np.testing.assert_allclose(np.vdot(pulled, direction), np.vdot(got, direction), rtol=1e-9)


@pytest.mark.parametrize("name", EXACT)
def test_masked_entries_get_nothing(x64, name):
    live = np.random.default_rng(2).random(ROWS.shape) < 0.5
    live[3] = False
    fn = getattr(normalizers, name)()
    got = fn(jnp.where(live, ROWS, -jnp.inf))
    assert not np.any(np.asarray(got)[~live])
    for row, keep, weight in zip(ROWS, live, got, strict=True):
        if keep.any():
            np.testing.assert_allclose(weight[keep], fn(jnp.asarray(row[keep])), atol=1e-12)
    slope = jax.grad(lambda x: jnp.sum(jnp.sin(fn(jnp.where(live, x, -jnp.inf)))))(jnp.asarray(ROWS))
    assert np.all(np.isfinite(slope))
    assert not np.any(np.asarray(slope)[~live])


@pytest.mark.parametrize("name", ["sparsemax", "entmax15"])
def test_ties_and_single_keys(x64, name):
    fn = getattr(normalizers, name)()
    np.testing.assert_allclose(fn(jnp.zeros((1, 4))), np.full((1, 4), 0.25), atol=1e-15)
    np.testing.assert_allclose(fn(jnp.full((1, 1), 7.0)), [[1.0]], atol=1e-15)
    np.testing.assert_allclose(fn(jnp.asarray([[9.0, 0.0, 9.0]])), [[0.5, 0, 0.5]], atol=1e-15)


@pytest.mark.parametrize("name", ["sparsemax", "entmax15"])
def test_large_scores_lose_nothing(name):
    fn = getattr(normalizers, name)()
    row = jnp.asarray([[0.25, 0.5, -0.125, -4.0]])
    np.testing.assert_array_equal(fn(row + 4096), fn(row))


def test_hard_takes_the_first_maximum_and_passes_no_gradient():
    row = jnp.asarray([[1.0, 3.0, 3.0]])
    np.testing.assert_array_equal(normalizers.hard()(row), [[0, 1, 0]])
    np.testing.assert_array_equal(jax.jacobian(normalizers.hard())(row), np.zeros((1, 3, 1, 3)))
    through = normalizers.hard(straight_through=True)
    np.testing.assert_array_equal(through(row), [[0, 1, 0]])
    np.testing.assert_allclose(jax.jacobian(through)(row), jax.jacobian(normalizers.softmax())(row), atol=1e-7)


def test_gumbel_draws_from_the_softmax():
    score = jnp.asarray([0.0, 1.0, 2.0])
    q = jnp.ones((4000, 1, 1))
    k, v = score[:, None, None], jnp.eye(3)[:, None]
    normalizer = normalizers.gumbel(jax.random.key(0), hard=True)
    share = jattn.attention(q, k, v, score=jattn.scores.dot(1.0), normalizer=normalizer).mean(0)[0]
    np.testing.assert_allclose(share, jax.nn.softmax(score), atol=4 * np.sqrt(0.25 / 4000))


def test_gumbel_temperature_and_key():
    q, k, v = jax.random.normal(jax.random.key(1), (3, 5, 2, 4))
    draw = lambda key, temperature: jattn.weights(q, k, v, normalizer=normalizers.gumbel(key, temperature))
    cold, warm = (draw(jax.random.key(0), x) for x in (0.05, 50.0))
    assert cold.max(-1).min() > warm.max(-1).max()
    np.testing.assert_allclose(warm, np.full(warm.shape, 1 / 5), atol=0.1)
    assert not np.array_equal(cold, draw(jax.random.key(2), 0.05))
    hard = jattn.weights(q, k, v, normalizer=normalizers.gumbel(jax.random.key(0), 1.0, hard=True))
    soft = draw(jax.random.key(0), 1.0)
    np.testing.assert_array_equal(hard.argmax(-1), soft.argmax(-1))
    np.testing.assert_allclose(np.sort(hard, -1)[..., -1], 1, atol=1e-6)
