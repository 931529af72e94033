"""Gates: dropout bit for bit, and Luong's window."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

import jattn
from jattn import gates, masks
from tests.oracle import bits_of


def _keep(seed, rate=0.5, b=2, t=67, h=3, s=59, **options):
    """Where dropout kept the weight, seen through attention itself: one-hot values read the weights out."""
    q, k = jnp.zeros((b, t, h, 4)), jnp.zeros((b, s, h, 4))
    v = jnp.broadcast_to(jnp.eye(s)[:, None], (b, s, h, s))
    out = jattn.attention(q, k, v, dropout=gates.dropout(rate, seed), **options)
    return np.asarray(out).transpose(0, 2, 1, 3) * s


def test_same_bits_for_every_tiling_and_backend():
    wanted = np.array([[[[bits_of(7, b, h, i, j) >= 2**31 for j in range(59)] for i in range(67)] for h in range(3)]
                       for b in range(2)])  # fmt: skip
    ways: list[dict[str, Any]] = [{"implementation": "reference"}, {}, {"blocks": (16, 8)}, {"blocks": (5, 59)}]
    for options in ways:
        np.testing.assert_allclose(_keep(7, **options), wanted * 2.0, rtol=1e-5)
    shape = dict(b=2, t=67, h=3, s=59)
    seen = jattn.weights(*(jnp.zeros((2, n, 3, 4)) for n in (67, 59, 59)), dropout=gates.dropout(0.5, 7))
    np.testing.assert_allclose(np.asarray(seen) * shape["s"], wanted * 2.0, rtol=1e-5)


def test_zero_rate_drops_nothing_and_seeds_differ():
    np.testing.assert_allclose(_keep(3, rate=0.0), 1.0, rtol=1e-6)
    assert not np.array_equal(_keep(3), _keep(4))
    np.testing.assert_array_equal(_keep(3), _keep(jnp.uint32(3)))


def test_a_new_seed_does_not_recompile():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def fn(q, seed):
        return jattn.attention(q, q, q, dropout=gates.dropout(0.5, seed))

    q = jnp.ones((1, 8, 2, 4))
    one, two = fn(q, jnp.uint32(1)), fn(q, jnp.uint32(2))
    assert not np.array_equal(one, two)


def test_gaussian_is_luongs_window():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 9, 2, 4))
    center = jnp.linspace(0, 8, 18).reshape(2, 9)
    got = jattn.weights(q, k, v, mask=masks.window(4, 4), gates=(gates.gaussian(center, 2.0),))
    plain = jattn.weights(q, k, v, mask=masks.window(4, 4))
    factor = np.exp(-((np.arange(9) - np.asarray(center)[..., None]) ** 2) / (2 * 2.0**2))
    np.testing.assert_allclose(got, plain * factor[:, None], rtol=1e-5, atol=1e-7)


def test_function_gate_is_linear_and_not_renormalised():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 9, 2, 4))
    half = gates.function(lambda w, i, j, x: w * x, jattn.operand(jnp.asarray([0.5, 2.0]), "h"))
    got = jattn.attention(q, k, v, gates=(half,))
    np.testing.assert_allclose(got, jattn.attention(q, k, v) * jnp.asarray([0.5, 2.0])[:, None], rtol=1e-5, atol=1e-6)
