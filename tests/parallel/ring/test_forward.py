"""What a device has seen so far and a piece of the keys as one softmax; rows that see nothing in one or in both."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from jattn_kernels import online_softmax

from jattn.backends.contract import Result
from jattn.parallel._ring.forward import _merged
from tests.tolerances import assert_close

RANDOM = np.random.default_rng(0)
SCORES, VALUES = RANDOM.standard_normal((1, 3, 2, 12)) * 4, RANDOM.standard_normal((12, 5))


def softmax_of(scores: np.ndarray, values: np.ndarray) -> Result:
    """In float32, from float64: out `[b, t, h, e]`, the lse as a number of float32 and what that leaves."""
    with np.errstate(divide="ignore"):
        lse = np.log(np.exp(scores).sum(-1))
    weights = np.exp(scores - np.where(np.isfinite(lse), lse, 0)[..., None])
    rounded = lse.astype(np.float32)
    left = np.where(np.isfinite(lse), lse, 0) - np.where(np.isfinite(lse), rounded, 0)
    return Result(*(jnp.asarray(x, jnp.float32) for x in (weights @ values, rounded, left)))


@pytest.mark.parametrize("cuts", [(), (4,), (1, 1, 7), (6, 9), (9, 11)], ids=str)
@pytest.mark.parametrize(
    "hidden", [slice(0, 0), slice(0, 6), slice(6, 12), slice(0, 12)], ids=["none", "first", "last", "all"]
)
def test_pieces_one_after_the_other_are_the_whole(cuts, hidden):
    scores = SCORES.copy()
    scores[:, 1, :, hidden] = -np.inf  # of the second query alone
    state = online_softmax.start((1, 3, 2), 5, jnp.float32)
    for a, b in zip((0, *cuts), (*cuts, 12), strict=True):
        state = _merged(state, softmax_of(scores[..., a:b], VALUES[a:b]))
    out, lse, remainder = online_softmax.finish(state)
    wanted = softmax_of(scores, VALUES)
    assert_close(out, wanted.out, 2e-6)
    assert_close(np.asarray(lse, np.float64) + np.asarray(remainder), wanted.lse, 2e-6)
