"""Any number of batch axes: they become one for a call, and come back."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn.nn import Rotary
from jattn.nn._batching import batch_axes, batched, merge_lead
from tests.nn.makers import MAKERS, F

X = np.random.default_rng(0).standard_normal((2, 3, 5, 2, 4)).astype(np.float32)


@pytest.mark.parametrize("lead", [(), (6,), (2, 3), (1, 2, 3), (2, 0)], ids=str)
def test_each_example_is_a_call_of_its_own(lead):
    x = jnp.asarray(np.resize(X, (*lead, 5, 2, 4)))
    out, lse = batched(jattn.attention, x, x, x, {"return_lse": True})
    assert out.shape == x.shape and lse.shape == x.shape[:-1]
    for at in np.ndindex(*lead):
        wanted = jattn.attention(x[at], x[at], x[at], return_lse=True)
        np.testing.assert_allclose(out[at], wanted[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(lse[at], wanted[1], rtol=1e-5, atol=1e-6)


EMPTY = {
    "MultiHeadAttention": lambda layer, x: layer(x),
    "decode": lambda layer, x: layer.decode(x, layer.cache(4, x.shape[:-2], "int8"))[0],
    "LocalAttention": lambda layer, x: layer(x),
    "TransformerBlock": lambda layer, x: layer(x),
    "Seq2SeqAttention": lambda layer, x: layer(x, layer.read(jnp.ones((*x.shape[:-2], 3, F)))),
    "AttentionPooling": lambda layer, x: layer(x, jnp.ones(x.shape[:-1], bool)),
    "HierarchicalAttention": lambda layer, x: layer(
        x[..., None, :, :], jnp.ones((*x.shape[:-2], 1, x.shape[-2]), bool)
    ),
    "ABCNN": lambda layer, x: layer(x, jnp.ones((*x.shape[:-2], 3, F)))[0],
}


@pytest.mark.parametrize("shape", [(2, 0), (0, 3), (2, 3, 0), (2, 0, 3)], ids=str)
@pytest.mark.parametrize("name", EMPTY)
def test_axes_of_size_0(name, shape):
    options = {"rotary": Rotary(1e4, interleaved=True)} if name in ("MultiHeadAttention", "decode") else {}
    layer = MAKERS.get(name, MAKERS["MultiHeadAttention"])(**options)
    out = EMPTY[name](layer, jnp.zeros((*shape, F)))
    assert out.shape[: len(shape) - 1] == shape[:-1] and np.isfinite(out).all()


def test_weights_are_the_definitions_whatever_runs_the_attention():
    x = jnp.asarray(X)
    got = batched(jattn.weights, x, x, x, {"implementation": "blockwise", "blocks": (2, 2)})
    assert got.shape == (2, 3, 2, 5, 5)
    np.testing.assert_allclose(got[1, 2], jattn.weights(x[1, 2], x[1, 2], x[1, 2]), rtol=1e-5)


def test_scales_have_the_batch_axes_of_their_keys():
    narrow, ones = jnp.asarray(np.round(20 * X), jnp.int8), jnp.full(X.shape[:-1], 0.05)
    got = batched(jattn.attention, jnp.asarray(X), narrow, narrow, {"scales": (ones, ones)})
    wide = narrow * ones[..., None]
    np.testing.assert_allclose(got, batched(jattn.attention, jnp.asarray(X), wide, wide, {}), rtol=1e-4, atol=1e-5)


def test_batch_axes_that_differ_are_named():
    x = jnp.asarray(X)
    with pytest.raises(ValueError, match=r"the same batch axes, got query \[2, 3, 5, 2, 4\], key \[3, 5, 2, 4\]"):
        batched(jattn.attention, x, x[0], x, {})


@pytest.mark.parametrize(
    ("shape", "lead", "merged"),
    [
        ((5, 5), (2, 3), (5, 5)),
        ((1, 5, 5), (2, 3), (1, 5, 5)),
        ((4, 1, 5, 5), (4,), (4, 1, 5, 5)),
        ((3, 1, 5, 5), (2, 3), (6, 1, 5, 5)),
        ((2, 1, 1, 5, 5), (2, 3), (6, 1, 5, 5)),
        ((1, 1, 2, 5, 5), (2, 3), (1, 2, 5, 5)),
    ],
)
def test_what_is_broadcast_to_the_batch_axes_is_broadcast_to_one(shape, lead, merged):
    array = np.arange(np.prod(shape)).reshape(shape)
    got = merge_lead(array, lead, "mask")
    assert got.shape == merged
    if len(shape) > 3:
        every = np.broadcast_to(array, (*lead, *shape[-3:])).reshape(-1, *shape[-3:])
        np.testing.assert_array_equal(np.broadcast_to(got, every.shape), every)
    else:
        np.testing.assert_array_equal(got, array)


@pytest.mark.parametrize("shape", [(2, 1, 5, 5), (3, 2, 1, 5, 5), (1, 2, 3, 1, 5, 5)])
def test_what_is_not_is_named(shape):
    with pytest.raises(ValueError, match=r"^mask must be broadcastable to .* with the batch axes \[2, 3\], got"):
        merge_lead(np.ones(shape), (2, 3), "mask")


def test_the_batch_axes_of_a_cache_are_ints():
    assert [batch_axes(x) for x in (3, np.int64(3), (2, 3), [2], ())] == [(3,), (3,), (2, 3), (2,), ()]
    for wrong in (-1, (2, -1), (True,), (2.0,)):
        with pytest.raises(ValueError, match="batch must be the batch axes of x, an int or a tuple of ints, got"):
            batch_axes(wrong)  # pyright: ignore[reportArgumentType]  # wrong on purpose
