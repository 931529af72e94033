"""The products of one tile, in every order in which they are written: all the same sums."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.backends.blockwise.products import Joined, PerHead
from jattn.backends.steps import Step

B, G, R, T, S, D, E = 2, 3, 2, 4, 5, 6, 7
HIGHEST = jax.lax.Precision.HIGHEST
WAYS = {"per head": PerHead(HIGHEST, False), "narrow": PerHead(HIGHEST, True), "joined": Joined(HIGHEST)}


def _numbers(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def _step(s=S):
    at = {"b": (0, B), "g": (0, G), "h": (0, G * R), "t": (0, T), "s": (0, s)}
    return Step(at, R)


@pytest.mark.parametrize(
    "t", [1, 4, 5]
)  # with two query heads a key head, a sum of up to eight products is written out
@pytest.mark.parametrize("way", WAYS)
def test_products_are_those_of_each_head(way, t):
    products = WAYS[way]
    keys, values, query, weights = (
        _numbers(B, S, G, D),
        _numbers(B, S, G, E),
        _numbers(B, G, R, t, D),
        _numbers(B, G, R, t, S),
    )
    key, value = (products.key(_step(), x, jnp.float32, None) for x in (keys, values))
    close = lambda got, wanted: np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    close(products.scores(query, key), np.einsum("bgrtd,bsgd->bgrts", query, keys))
    close(products.rows(weights, value), np.einsum("bgrts,bsge->bgrte", weights, values))
    columns = products.columns(weights, query)
    put = products.put(_step(), jnp.zeros_like(keys), columns, False)
    close(put, np.einsum("bgrts,bgrtd->bsgd", weights, query))
    close(products.put(_step(), keys, columns, True), keys + put)


@pytest.mark.parametrize("way", WAYS)
def test_keys_that_are_not_seen_are_0_whatever_they_hold(way):
    keys = _numbers(B, S, G, D).at[:, 3:].set(jnp.nan)
    seen = jnp.broadcast_to(jnp.arange(S) < 3, (1, G, S))
    products = WAYS[way]
    key = products.key(_step(), keys, jnp.float32, seen)
    assert np.isfinite(key).all()
    scores = products.scores(_numbers(B, G, R, T, D), key)
    assert not scores[..., 3:].any() and scores[..., :3].all()


@pytest.mark.parametrize("way", WAYS)
def test_a_tile_is_a_part_of_the_keys(way):
    keys, products = _numbers(B, S, G, D), WAYS[way]
    part = _step(2).along("s", 1, 2)
    key = products.key(part, keys, jnp.float32, None)
    query = _numbers(B, G, R, 1, D)
    np.testing.assert_allclose(
        products.scores(query, key), np.einsum("bgrtd,bsgd->bgrts", query, keys[:, 1:3]), rtol=1e-4, atol=1e-5
    )
    back = products.put(part, jnp.zeros_like(keys), key, False)
    np.testing.assert_array_equal(back[:, 1:3], keys[:, 1:3])
    assert not back[:, 3:].any() and not back[:, :1].any()


@pytest.mark.parametrize("way", WAYS)
def test_a_heads_infinity_reaches_no_other_head(way):
    """Where keys lie side by side a query is 0 in the places of other heads: 0 * inf would be NaN there."""
    keys = _numbers(B, S, G, D)
    products = WAYS[way]
    weights = jnp.ones((B, G, R, 1, S))
    value = products.key(_step(), keys.at[0, 0, 0, 0].set(jnp.inf), jnp.float32, None)
    out = products.rows(weights, value)
    assert np.isinf(out[0, 0, :, 0, 0]).all()
    assert np.isfinite(out[1]).all() and np.isfinite(out[0, 1:]).all()
