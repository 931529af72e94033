"""Weights of which many are exactly 0: rows that sum to 1, ties, and the search for the threshold."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import normalizers
from tests.normalizers.definitions import EXACT, ROWS

SPARSE = {"sparsemax": normalizers.sparsemax(), "entmax15": normalizers.entmax15()}


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


@pytest.mark.parametrize("name", SPARSE)
def test_rows_sum_to_one_whatever_computes_the_scores(name):
    """XLA may compute a score twice and round it differently: no weight may hang on its last bit."""
    random = np.random.default_rng(3)
    s, x = (jnp.asarray(random.normal(size=n), jnp.float32) for n in ((13, 7), (13, 1)))
    weights = jax.jit(lambda s, x: SPARSE[name](jnp.tanh(s + x) * x + 0.01 * s * s))(s, x)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    q, k = (jnp.asarray(random.normal(size=(1, n, 1, 4)), jnp.float32) for n in (13, 7))
    curved = jattn.mods.function(lambda s, i, j, x: jnp.tanh(s + x) * x + 0.01 * s * s, jattn.operand(x[:, 0], "t"))
    for implementation in ("reference", "blockwise"):
        out = jattn.attention(
            q, k, jnp.ones_like(k), normalizer=SPARSE[name], mods=(curved,), implementation=implementation
        )
        np.testing.assert_allclose(out, 1, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", SPARSE)
def test_rows_sum_to_one_whatever_the_scores(x64, name, dtype):
    random = np.random.default_rng(4)
    fn, precision = jax.jit(SPARSE[name]), 8 * np.finfo(dtype).eps
    for size in (1, 2, 7, 300, 5000):
        for scale in (0, 1e-6, 0.01, 1, 100, 1e30):
            weights = np.asarray(fn(jnp.asarray(random.normal(size=(3, size)) * scale, dtype)))
            assert weights.dtype == dtype and weights.min() >= 0
            np.testing.assert_allclose(weights.sum(-1), 1, atol=precision)
    # every step of the search takes few keys away
    for row in (-np.exp(-np.linspace(0, 30, 300)), np.exp(-np.linspace(0, 30, 300)), np.repeat([0.0, -1, -2], 100)):
        weights = np.asarray(fn(jnp.asarray(row, dtype)))
        np.testing.assert_allclose(weights.sum(), 1, atol=precision)
        np.testing.assert_allclose(weights, EXACT[name](row), atol=precision)


@pytest.mark.parametrize("name", SPARSE)
def test_second_derivative(x64, name):
    fn = SPARSE[name]
    a, b = np.random.default_rng(5).normal(size=(2, *ROWS.shape))
    first = lambda x: jax.jvp(fn, (x,), (jnp.asarray(a),))[1]
    got = jax.jvp(first, (jnp.asarray(ROWS),), (jnp.asarray(b),))[1]
    np.testing.assert_allclose(got, (first(ROWS + 1e-6 * b) - first(ROWS - 1e-6 * b)) / 2e-6, atol=1e-7)
    loss = lambda x: jnp.sum(a * fn(x))
    pulled = jax.grad(lambda x: jnp.vdot(b, jax.grad(loss)(x)))(jnp.asarray(ROWS))
    np.testing.assert_allclose(np.vdot(pulled, a), np.vdot(got, a), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", SPARSE)
def test_the_threshold_is_found_once(name):
    """The search is not part of the backward pass, though whole rows are computed again there; and nothing is sorted."""
    x = jnp.ones((1, 6, 2, 4))
    loss = lambda x: jnp.sum(jattn.attention(x, x, x, normalizer=SPARSE[name], implementation="blockwise") ** 2)
    program = str(jax.make_jaxpr(jax.grad(loss))(x))
    assert program.count("= while[") == 1
    assert "sort" not in program


@pytest.mark.parametrize("name", SPARSE)
def test_inside_shard_map(name):
    """The search runs on every device by itself, for as many steps as its rows need."""
    x = jnp.asarray(np.random.default_rng(6).normal(size=(2, 6, 2, 4)), jnp.float32)
    attend = lambda x: jattn.attention(x, x, x, normalizer=SPARSE[name], implementation="blockwise")
    mesh = jax.make_mesh((2,), ("b",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("b")
    sharded = jax.jit(jax.shard_map(attend, mesh=mesh, in_specs=spec, out_specs=spec))
    loss = lambda attend: lambda x: jnp.sum(attend(x) ** 2)
    np.testing.assert_allclose(sharded(x), attend(x), atol=1e-6)
    np.testing.assert_allclose(jax.grad(loss(sharded))(x), jax.grad(loss(attend))(x), atol=1e-5)
