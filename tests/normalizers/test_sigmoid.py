"""A weight for each pair by itself: the learned bias, scores far from 0, and keys in parts that are added up."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import masks, normalizers, operand
from tests import oracle


@pytest.mark.parametrize("implementation", ["reference", "blockwise"])
def test_attention_and_the_gradient_of_its_bias(draw, implementation):
    q, k, v = draw.inputs()
    bias, seen = -np.log(v.shape[1]), oracle.window(7, 3)
    wanted = oracle.attention(*map(np.asarray, (q, k, v)), normalizer=oracle.sigmoid(bias), mask=seen)

    def attend(bias):
        normalizer = normalizers.sigmoid(bias)
        blocks = (4, 5) if implementation == "blockwise" else None
        return jattn.attention(
            q, k, v, normalizer=normalizer, mask=masks.window(7, 3), implementation=implementation, blocks=blocks
        )

    np.testing.assert_allclose(attend(float(bias)), wanted.out, atol=1e-14)
    got = jax.value_and_grad(lambda x: jnp.sum(jnp.sin(attend(x))))(jnp.asarray(bias))
    np.testing.assert_allclose(got[0], np.sin(wanted.out).sum(), rtol=1e-13)
    # each weight has the slope p (1 - p), which is 0 of the pairs that are hidden
    slopes = wanted.weights * (1 - wanted.weights)
    of_head = np.repeat(np.asarray(v), q.shape[2] // v.shape[2], axis=2)
    moved = np.einsum("bhts,bshe->bthe", slopes, of_head)
    np.testing.assert_allclose(got[1], np.sum(np.cos(wanted.out) * moved), rtol=1e-12)


def test_scores_far_from_zero(x64):
    """Nothing overflows: below 0 weight and slope are exp(score) to the last digit, and above it 1 and next to nothing."""
    far = np.array([-1e300, -700.0, -40.0, 40.0, 700.0, 1e300])
    fn = normalizers.sigmoid(2.0)
    wanted = [0, np.exp(-698), np.exp(-38), 1, 1, 1]
    np.testing.assert_allclose(fn(jnp.asarray(far)), wanted, rtol=1e-14)
    slope = jax.grad(lambda x: fn(x).sum())(jnp.asarray(far))
    np.testing.assert_allclose(slope[:3], wanted[:3], rtol=1e-14)
    np.testing.assert_allclose(slope[3:], 0, atol=np.exp(-42))


def test_keys_in_two_parts_are_added_up(draw):
    """What one key gets hangs on no other, so that a row over all keys is the sum of rows over some."""
    q, k, v = draw.inputs()
    attend = lambda k, v: jattn.attention(q, k, v, normalizer=normalizers.sigmoid(-1.0))
    np.testing.assert_allclose(attend(k, v), attend(k[:, :6], v[:, :6]) + attend(k[:, 6:], v[:, 6:]), atol=1e-14)


@pytest.mark.parametrize(
    ("bias", "error"), [(np.zeros(3), ValueError), (operand(np.zeros(4), "h"), TypeError), ("-1", TypeError)]
)
def test_a_bias_is_one_number(bias, error):
    with pytest.raises(error, match="bias"):
        normalizers.sigmoid(bias)
