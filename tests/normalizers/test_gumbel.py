"""Gumbel noise: the same for every tiling, independent between pairs, and draws that are counted."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np

import jattn
from jattn import normalizers
from tests.mods.formulas import SIZES, TILES, blockwise
from tests.tolerances import assert_close


def test_gumbel_noise_is_independent_of_the_tiling(draw):
    q, k, v = draw.inputs()
    normalizer = normalizers.gumbel(jax.random.key(3), 0.8)
    wanted = jattn.attention(q, k, v, normalizer=normalizer, implementation="reference")
    seen = jattn.weights(q, k, v, normalizer=normalizer)
    v_of_head = jnp.repeat(v, SIZES.h // SIZES.g, axis=2)
    assert_close(jnp.einsum("bhts,bshe->bthe", seen, v_of_head), wanted, 2e-14)
    for blocks in TILES:
        assert_close(blockwise(blocks)(q, k, v, normalizer=normalizer), wanted, 2e-14)


def test_gumbel_noise_differs_between_pairs_heads_and_elements():
    """Of equal scores, the weights are those of the noise alone: softmax(-log(-log(u)) / temperature)."""
    b, t, h = 2, 40, 3
    x = jnp.zeros((b, t, h, 1))
    got = np.asarray(jattn.weights(x, x, x, normalizer=normalizers.gumbel(jax.random.key(0), 2.0)))
    noise = 2.0 * np.log(got)
    noise -= noise.mean(-1, keepdims=True)
    assert len(np.unique(noise.round(4))) > 0.8 * noise.size
    for first, second in itertools.combinations(noise.reshape(b * h, t * t), 2):
        assert abs(np.corrcoef(first, second)[0, 1]) < 5 / t
    # standard Gumbel noise has variance pi^2 / 6
    np.testing.assert_allclose(noise.var() * t / (t - 1), np.pi**2 / 6, rtol=0.08)


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
