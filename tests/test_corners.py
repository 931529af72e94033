"""Corners where a wrong number would be silent: nothing to attend to, far positions, infinities, NaN in a range."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import gates, masks, mods, normalizers, scores
from tests.tolerances import assert_close

BACKENDS = ["blockwise", "pallas_tpu", "reference"]
Q, K, V = (np.random.default_rng(n).standard_normal((2, 8, 2, 4)).astype(np.float32) for n in range(3))


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    monkeypatch.setenv("JATTN_INTERPRET", "1")


def _attend(implementation, q: Any = Q, k: Any = K, v: Any = V, **options: Any):
    blocks = (3, 3) if implementation == "blockwise" else None
    return jattn.attention(q, k, v, implementation=implementation, blocks=blocks, **options)


@pytest.mark.parametrize("implementation", BACKENDS)
def test_a_nan_in_one_centre_is_that_row_alone(implementation):
    center = np.arange(8.0, dtype=np.float32)
    wanted = _attend(implementation, mask=masks.around(center, 1, 1))
    center[2] = np.nan
    got = _attend(implementation, mask=masks.around(center, 1, 1))
    assert not got[:, 2].any()
    rest = np.delete(np.arange(8), 2)
    assert_close(got[:, rest], wanted[:, rest], 1e-6)


@pytest.mark.parametrize("implementation", BACKENDS)
@pytest.mark.parametrize("size", [(0, 8, 8), (2, 0, 8), (2, 8, 0), (0, 0, 0)], ids=str)
def test_nothing(size, implementation):
    b, t, s = size
    q, k, v = jnp.ones((b, t, 4, 5)), jnp.ones((b, s, 2, 5)), jnp.ones((b, s, 2, 3))
    options = {"mask": masks.causal() & masks.lengths(np.ones(b, int)), "mods": mods.alibi(jnp.ones(4))}
    of = lambda q, k, v: _attend(implementation, q, k, v, return_lse=True, **options)
    (out, lse), pull = jax.vjp(of, q, k, v)
    chex.assert_shape([out, lse], [(b, t, 4, 3), (b, t, 4)])
    assert not out.any()
    assert np.isneginf(lse).all()
    chex.assert_trees_all_equal(pull((out, lse)), jax.tree.map(jnp.zeros_like, (q, k, v)))
    assert (_attend(implementation, q, k, v, sinks=jnp.ones(4), return_lse=True)[1] == 1).all()
    assert jattn.weights(q, k, v, **options).shape == (b, 4, t, s)
    assert jattn.attention(q, k, v, normalizer=normalizers.sparsemax()).shape == (b, t, 4, 3)
    drawn, index, log_prob = jattn.sample(jax.random.key(0), q, k, v)
    chex.assert_shape([drawn, index, log_prob], [(b, t, 4, 3), (b, t, 4), (b, t, 4)])
    assert (index == -1).all()
    jattn.explain(q, k, v, **options)


@pytest.mark.parametrize("implementation", BACKENDS)
def test_a_row_of_the_lowest_number_is_the_mean(implementation):
    bias = jnp.zeros((8, 8)).at[3].set(jnp.finfo(jnp.float32).min)
    out = _attend(implementation, bias=bias, score=scores.dot(0.1))
    assert_close(out[:, 3], V.mean(1), 1e-6)


SHIFTS = [2.0**13, 2.0**19, -(2.0**19), -1e9, 1e30, float(np.finfo(np.float32).min)]
WITH = {
    "a bias": {},
    "dropout": {"dropout": gates.dropout(0.5, 3)},
    "a gate": {"gates": (gates.function(lambda w, i, j: w * jnp.sqrt(1.0 + j)),)},
    "a mask": {"mask": masks.window(5, 2)},
    "sinks": {"sinks": np.array([0.5, -0.5], np.float32)},
}


@pytest.mark.parametrize("implementation", BACKENDS[:2])
@pytest.mark.parametrize("option", WITH)
@pytest.mark.parametrize("shift", SHIFTS)
def test_scores_so_large_that_lse_has_no_place_for_the_log_of_a_sum(shift, option, implementation):
    """Out, its tangent and all gradients: the weights of n equal scores are 1 / n there too.

    Queries and keys are fourths and the bias a multiple of what is next to it, so that every score is exact.
    """
    q, k = (np.round(4 * x) / 4 for x in (Q, K))
    bias = np.full((2, 8, 8), shift, np.float32)
    bias[:, 5:] = 0  # beside ordinary rows

    def loss(implementation):
        of = lambda q, k, v, bias: _attend(implementation, q, k, v, bias=bias, score=scores.dot(1.0), **WITH[option])
        return lambda *args: jnp.sum(jnp.sin(of(*args)) * (1 + np.arange(4))), of

    (got, of_got), (wanted, of_wanted) = (loss(x) for x in (implementation, "reference"))
    args = q, k, V, bias
    pairs = zip(jax.grad(got, (0, 1, 2, 3))(*args), jax.grad(wanted, (0, 1, 2, 3))(*args), strict=True)
    for x, y in pairs:
        assert_close(x, y, 1e-5)
    moved = (*map(np.cos, args[:3]), np.cos(np.arange(128, dtype=np.float32)).reshape(bias.shape))
    for x, y in zip(jax.jvp(of_got, args, moved), jax.jvp(of_wanted, args, moved), strict=True):
        assert_close(x, y, 1e-5)


@pytest.mark.parametrize("implementation", BACKENDS[:2])
@pytest.mark.parametrize(
    ("dtype", "size"),
    [*((jnp.float32, x) for x in (2.0**10, 2.0**12, 999.0, 3.0e6)), (jnp.bfloat16, 999.0), (jnp.bfloat16, 3.0e4)],
)
def test_equal_products_of_any_size_share_the_weight(dtype, size, implementation):
    q, k, v = jnp.full(Q.shape, size, dtype), jnp.full(K.shape, size, dtype), jnp.asarray(V, dtype)
    of = lambda implementation: lambda v: _attend(implementation, q.astype(v.dtype), k, v, mask=masks.causal())
    loss = lambda implementation: lambda v: jnp.sum(of(implementation)(v) * np.cos(V))
    wide, tolerance = v.astype(jnp.float32), 1e-5 if dtype == jnp.float32 else 2e-2
    assert_close(jax.grad(loss(implementation))(v), jax.grad(loss("reference"))(wide), tolerance)
    tangents = (jax.jvp(of(x), (y,), (jnp.cos(y),))[1] for x, y in ((implementation, v), ("reference", wide)))
    assert_close(next(tangents), next(tangents), tolerance)
