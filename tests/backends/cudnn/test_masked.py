"""A mask as cuDNN takes it: its parts, and what they show of a call, against a look at every pair."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jattn import masks
from jattn.backends.cudnn.masked import parts, seen

B, T, S = 3, 6, 8
I, J = np.arange(T)[:, None], np.arange(S)[None]
KEYS, QUERIES = np.array([0, 3, 8]), np.array([6, 0, 4])
per_batch = lambda x: np.asarray(x)[:, None, None]

MASKS = {
    "none": (None, I == I),
    "causal": (masks.causal(), J <= I),
    "window": (masks.window(2), (J <= I) & (J >= I - 2)),
    "two windows": (masks.causal() & masks.window(3, 2), (J <= I) & (J >= I - 3)),
    "lengths": (masks.lengths(KEYS), per_batch(KEYS) > J),
    "lengths of both": (masks.lengths(KEYS, QUERIES), (per_batch(KEYS) > J) & (per_batch(QUERIES) > I)),
    "causal lengths": (
        masks.causal() & masks.lengths(KEYS, QUERIES),
        (J <= I) & (per_batch(KEYS) > J) & (per_batch(QUERIES) > I),
    ),
    "a window of lengths": (masks.window(1) & masks.lengths(KEYS), (J <= I) & (J >= I - 1) & (per_batch(KEYS) > J)),
    "the least of several": (masks.prefix(5) & masks.prefix(7) & masks.lengths(KEYS), (J < 5) & (per_batch(KEYS) > J)),
    "one length for all": (masks.prefix(jnp.int32(4)), J < 4),
    "more than there are": (masks.lengths(100, 100), I == I),
}


@pytest.mark.parametrize("name", MASKS)
def test_what_is_seen_is_what_the_mask_shows(name):
    mask, formula = MASKS[name]
    pairs = np.broadcast_to(formula, (B, T, S))
    got = seen(mask, B, T, S)
    assert not pairs[..., got.end :].any()
    rows = np.ones((B, T), bool) if got.rows is None else got.rows
    keys = np.ones((B, got.end), bool) if got.keys is None else got.keys
    np.testing.assert_array_equal(rows, pairs.any(2))
    np.testing.assert_array_equal(keys, pairs[..., : got.end].any(1))


@pytest.mark.parametrize("name", MASKS)
def test_what_cudnn_is_told_is_the_mask_where_anything_is_seen(name):
    mask, formula = MASKS[name]
    got = seen(mask, B, T, S)
    told = np.ones((B, T, got.end), bool)
    i, j = np.arange(T)[:, None], np.arange(got.end)[None]
    if got.causal:
        told &= j <= i
    if got.window is not None:
        told &= j > i - got.window
    if got.lengths is not None:
        told &= (j < np.asarray(got.lengths.key)[:, None, None]) & (i < np.asarray(got.lengths.query)[:, None, None])
        assert (np.asarray(got.lengths.key) >= 1).all() and (np.asarray(got.lengths.query) >= 1).all()
    pairs = np.broadcast_to(formula, (B, T, S))[..., : got.end]
    shown = pairs.any(2, keepdims=True)
    np.testing.assert_array_equal(told & shown, pairs)


@pytest.mark.parametrize(
    "mask",
    [
        masks.dilated(2),
        masks.causal() | masks.prefix(3),
        ~masks.causal(),
        masks.segments(np.zeros(S, int)),
        masks.causal() & masks.function(lambda i, j: j != 3),
        masks.causal(jnp.int32(0)),
        masks.lengths(KEYS) & masks.blocks(np.ones((2, 2), bool), 4),
    ],
    ids=["dilated", "or", "not", "segments", "function", "known at run time", "blocks"],
)
def test_other_masks_have_no_such_parts(mask):
    assert parts(mask) is None


def test_parts_are_sorted_by_what_they_limit():
    got = parts(masks.lengths(3, 2) & masks.window(4) & masks.prefix(5))
    assert got is not None and got.padded
    assert (got.keys, got.queries) == ((3, 5), (2,))
    assert got.windows == masks.window(4)
    nothing = parts(None)
    assert nothing is not None and not nothing.padded and nothing.windows is None
