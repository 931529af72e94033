"""Keys and values of few bits: they have no tangents, and derivatives are those of the same numbers in the query's dtype."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import masks

RANDOM = np.random.default_rng(0)
Q = jnp.asarray(RANDOM.standard_normal((2, 5, 4, 3)), jnp.float32)
K, V = (jnp.asarray(RANDOM.integers(-100, 100, (2, 7, 2, 3)), jnp.int8) for _ in range(2))
SCALES = tuple(jnp.asarray(RANDOM.uniform(0.005, 0.02, (2, 7, 2)), jnp.float32) for _ in range(2))


def _narrow(q, scales, **options):
    return jattn.attention(q, K, V, scales=scales, mask=masks.causal(2), implementation="blockwise", **options)


def _meant(q, scales, **options):
    k, v = (x * y[..., None] for x, y in zip((K, V), scales, strict=True))
    return jattn.attention(q, k, v, mask=masks.causal(2), implementation="reference", **options)


TRANSFORMS = {
    "values": lambda f: f(Q, SCALES),
    "gradients": lambda f: jax.grad(lambda *x: jnp.sum(jnp.sin(f(*x))), (0, 1))(Q, SCALES),
    "tangents": lambda f: jax.jvp(lambda q: f(q, SCALES), (Q,), (jnp.cos(Q),)),
    "forward over reverse": lambda f: jax.jvp(jax.grad(lambda q: jnp.sum(jnp.sin(f(q, SCALES)))), (Q,), (jnp.cos(Q),)),
    "vmap": lambda f: jax.vmap(lambda q: f(q, SCALES))(jnp.stack([Q, 2 * Q])),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_they_are_those_of_what_the_numbers_mean(name):
    got, wanted = (jax.jit(lambda f=f: TRANSFORMS[name](f))() for f in (_narrow, _meant))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5), got, wanted)


def test_numbers_of_few_bits_are_held_as_they_are():
    """They are widened a tile at a time, and whole for a derivative alone."""
    forward = str(jax.make_jaxpr(lambda q: _narrow(q, SCALES))(Q))
    assert "i8[2,7,2,3]" in forward
    first = forward[forward.index("attend") :]
    assert "i8" in first
