"""What holds for all normalisers: definitions, gradients by finite differences, and rows that are hidden, broken or empty."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn import normalizers
from jattn._terms import rows
from tests.normalizers.definitions import EXACT, ROWS


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


@pytest.mark.parametrize("name", EXACT)
def test_rows_that_no_weights_could_stand_for(name):
    """NaN and +inf are NaN throughout the row; a row without a finite score has weights 0."""
    fn = getattr(normalizers, name)()
    nan, inf = np.nan, np.inf
    got = np.asarray(
        fn(jnp.asarray([[nan, 0, -inf], [inf, 0, 1], [-inf, -inf, -inf], [-inf, 2, -inf], [1e30, -1e30, 3e38]]))
    )
    bad = np.isnan(got[:2])
    assert bad.all() or (name == "sigmoid" and bad[:, 0].all())
    np.testing.assert_array_equal(got[2], 0)
    assert np.isfinite(got[3:]).all()
    if name != "sigmoid":
        np.testing.assert_array_equal(got[3:], [[0, 1, 0], [0, 0, 1]])


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (2, 0, 5)])
@pytest.mark.parametrize("name", EXACT)
def test_sizes_of_zero(name, shape):
    assert getattr(normalizers, name)()(jnp.zeros(shape)).shape == shape
    np.testing.assert_array_equal(rows.logsumexp(jnp.zeros((3, 0))), np.full(3, -np.inf))
