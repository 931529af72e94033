"""Softmax of rows of any size, and a tile at a time: what later keys do to the weights of those before them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import masks, normalizers, scores
from tests import oracle
from tests.normalizers.definitions import ROWS

exact = lambda row: oracle.softmax()(np.asarray(row, np.float64))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equal_scores_share_evenly_however_large_they_are(x64, dtype):
    """Of the least finite number too, from which no logarithm of a sum can be taken away."""
    most = np.finfo(dtype).max
    rows = np.array([[-most] * 4, [most] * 4, [0] * 4, [1e30] * 4], dtype)
    np.testing.assert_array_equal(normalizers.softmax()(jnp.asarray(rows)), np.full(rows.shape, 0.25))


@pytest.mark.parametrize("scale", [1e-6, 1, 30, 1000])
def test_rows_of_every_spread(scale):
    rows = (scale * ROWS).astype(np.float32)
    got = np.asarray(normalizers.softmax()(jnp.asarray(rows)))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, [exact(row) for row in rows], rtol=2e-6, atol=1e-37)
    np.testing.assert_allclose(got.sum(-1), 1, atol=1e-6)


def test_jacobian_is_that_of_the_formula(x64):
    """diag(p) - p p^T, symmetric, in which a hidden key has neither row nor column."""
    row = np.where(np.arange(11) == 4, -np.inf, ROWS[0])
    p = np.zeros(11)
    p[np.isfinite(row)] = exact(row[np.isfinite(row)])
    got = jax.jacobian(normalizers.softmax())(jnp.asarray(row))
    np.testing.assert_allclose(got, np.diag(p) - np.outer(p, p), atol=1e-15)


@pytest.mark.parametrize("blocks", [(4, 5), (13, 1), (1, 17)])
@pytest.mark.parametrize("step", [0.1, 50, -50])
def test_scores_that_grow_from_block_to_block(draw, step, blocks):
    """Each greater score takes its share from all that were added up before it, down to nothing."""
    q, k, v = draw.inputs()
    q = q.at[..., 0].set(1.0)
    k = k.at[..., 0].set(step * jnp.arange(k.shape[1])[:, None])
    arrays = [np.asarray(x) for x in (q, k, v)]
    wanted = oracle.attention(*arrays, score=oracle.dot(1.0), mask=oracle.window(9, 6))
    out, lse = jattn.attention(
        q,
        k,
        v,
        score=scores.dot(1.0),
        mask=masks.window(9, 6),
        normalizer=normalizers.softmax(),
        return_lse=True,
        implementation="blockwise",
        blocks=blocks,
    )
    np.testing.assert_allclose(out, wanted.out, atol=1e-13)
    np.testing.assert_allclose(lse, wanted.lse, rtol=1e-14, atol=1e-13)
