"""Rotary embedding: against complex numbers, what it leaves alone, against Flax's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn.nn import rotary
from tests.layers import LOOSE, TIGHT, normal, turn
from tests.tolerances import TOLERANCES, assert_close

B, T, S, H, D = 2, 6, 9, 4, 4


@pytest.mark.usefixtures("x64")
def test_rotary_is_multiplication_by_a_complex_number():
    x, positions = normal((B, T, H, 6)), np.random.default_rng(0).integers(0, 1000, (B, T))
    assert_close(rotary(x, positions, 500.0), turn(x, positions, 500.0), TIGHT)
    assert_close(rotary(x), turn(x, np.arange(T), 1e4), TIGHT)
    assert_close(rotary(x, positions[:1]), turn(x, positions[:1], 1e4), TIGHT)
    assert_close(rotary(x[0]), rotary(x)[0], TIGHT)


@pytest.mark.usefixtures("x64")
def test_rotary_scores_depend_on_the_distance_alone():
    query, key = normal((1, 1, D), 1), normal((1, 1, D), 2)
    at = lambda x, position: rotary(x, jnp.array([position]))
    score = lambda i, j: float(jnp.vdot(at(query, i), at(key, j)))
    assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-12)
    assert score(7, 3) == pytest.approx(score(4, 0), abs=1e-12)
    assert score(7, 3) != pytest.approx(score(7, 4), abs=1e-3)
    assert score(7, 3) != pytest.approx(score(3, 7), abs=1e-3)


@pytest.mark.usefixtures("x64")
def test_rotary_keeps_norms_and_the_first_position():
    x = normal((B, T, H, D))
    turned = rotary(x)
    assert_close(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), TIGHT)
    assert (turned[:, 0] == x[:, 0]).all()
    assert float(abs(turned - x)[:, 1:].min()) > 0


def test_rotary_angles_are_float32_in_bfloat16():
    x = jnp.ones((1, 1, 2), jnp.bfloat16)
    turned = rotary(x, jnp.array([1001]))  # bfloat16 has no 1001
    assert turned.dtype == jnp.bfloat16
    assert_close(turned[0, 0], [np.cos(1001) - np.sin(1001), np.sin(1001) + np.cos(1001)], TOLERANCES["bfloat16"].value)


@pytest.mark.skipif(not hasattr(nnx, "RoPE"), reason="this Flax has no RoPE")
def test_rotary_is_that_of_flax():
    x = normal((B, T, H, D))
    assert_close(rotary(x, base=500.0), jax.vmap(nnx.RoPE(theta=500.0), -2, -2)(x), LOOSE)  # pyright: ignore[reportAttributeAccessIssue]  # of newer releases


def test_rotary_of_an_odd_width():
    with pytest.raises(ValueError, match=r"d must be even, got x \[6, 4, 3\]"):
        rotary(jnp.ones((T, H, 3)))
