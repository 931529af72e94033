"""Keys that are drawn: how often each, with which probability, and what a row that sees nothing draws."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import jattn
from jattn import masks, scores


def _arrays(seed=0, b=2, t=9, s=11, h=4, g=2, d=5, e=3, dtype=jnp.float32):
    draw = lambda n, *shape: jax.random.normal(jax.random.key(seed * 10 + n), shape, dtype)
    return draw(0, b, t, h, d), draw(1, b, s, g, d), draw(2, b, s, g, e)


def test_sample_draws_from_the_softmax():
    _, k, v = _arrays(b=1, h=1, g=1, s=5)
    q = jnp.broadcast_to(jax.random.normal(jax.random.key(3), (5,)), (1, 6000, 1, 5))
    out, index, log_prob = jattn.sample(jax.random.key(0), q, k, v, mask=masks.prefix(4))
    wanted = jattn.weights(q[:, :1], k, v, mask=masks.prefix(4))[0, 0, 0]
    share = np.bincount(np.asarray(index).ravel(), minlength=5) / 6000
    np.testing.assert_allclose(share, wanted, atol=4 * np.sqrt(0.25 / 6000))
    np.testing.assert_allclose(out[0, :, 0], v[0, index[0, :, 0], 0])
    np.testing.assert_allclose(log_prob[0, :, 0], np.log(wanted[index[0, :, 0]]), rtol=1e-4)
    assert not np.array_equal(index, jattn.sample(jax.random.key(1), q, k, v, mask=masks.prefix(4))[1])


def test_log_prob_is_differentiable_and_its_gradient_has_mean_zero(x64):
    _, k, v = _arrays(b=1, h=2, g=1, s=5, dtype=jnp.float64)
    q = jnp.broadcast_to(jax.random.normal(jax.random.key(3), (2, 5)), (1, 4000, 2, 5))
    score = lambda q: jattn.sample(jax.random.key(0), q, k, v)[2]
    index = jattn.sample(jax.random.key(0), q, k, v)[1]

    def exact(q):
        log = jax.nn.log_softmax(jnp.einsum("bthd,bsd->bths", q, k[:, :, 0]) / np.sqrt(5), axis=-1)
        return jnp.take_along_axis(log, index[..., None], axis=-1)[..., 0]

    got, wanted = (jax.grad(lambda q, f=f: jnp.sum(f(q)))(q) for f in (score, exact))
    np.testing.assert_allclose(got, wanted, atol=1e-12)
    assert np.abs(got.mean((0, 1))).max() < 5 * got.std() / np.sqrt(4000)


def test_sample_of_rows_that_see_nothing():
    q, k, v = _arrays()
    out, index, log_prob = jattn.sample(jax.random.key(0), q, k, v, mask=masks.lengths([0, 3]))
    assert not np.any(out[0])
    assert np.all(index[0] == -1)
    assert np.all(log_prob[0] == -np.inf)
    assert np.all((index[1] >= 0) & (index[1] < 3))
    slope = jax.grad(lambda q: jnp.sum(jattn.sample(jax.random.key(0), q, k, v, mask=masks.lengths([0, 3]))[2][1]))(q)
    assert np.all(np.isfinite(slope))


def test_score_of_every_kind_goes_through_sample():
    q, k, v = _arrays()
    w = jax.random.normal(jax.random.key(5), (5, 5))
    _, index, log_prob = jattn.sample(jax.random.key(0), q, k, v, score=scores.general(w))
    wanted = jattn.weights(q, k, v, score=scores.general(w))
    np.testing.assert_allclose(
        jnp.exp(log_prob), jnp.take_along_axis(wanted, index.swapaxes(1, 2)[..., None], -1)[..., 0].swapaxes(1, 2),
        rtol=1e-4,
    )  # fmt: skip
