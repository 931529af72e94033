"""Terms whose arrays a layer keeps and does not learn."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jattn
from jattn import gates, mods, normalizers, scores
from jattn.nn import (
    MultiHeadAttention,
    Seq2SeqAttention,
    frozen,
)
from tests.layers import LOOSE, normal
from tests.nn.makers import rngs
from tests.tolerances import assert_close

B, T, S, F, H = 2, 6, 9, 16, 4


def learnt(layer):
    """Shapes of the options' arrays that are parameters."""
    return [x.shape for x in jax.tree.leaves(nnx.state(layer, nnx.All(nnx.Param, nnx.PathContains("arrays"))))]


def test_what_is_frozen_does_not_learn():
    slopes, table = np.ones(H, np.float32), np.zeros((H, T, T), np.float32)
    options = {
        "score": frozen(scores.cosine(np.array(5.0, np.float32))),
        "mods": (frozen(mods.alibi(slopes)), mods.bias(table, "hts"), frozen(mods.softcap(np.array(3.0, np.float32)))),
        "gates": frozen(gates.function(lambda w, i, j, x: w * x, jattn.operand(np.array(0.5, np.float32)))),
        "normalizer": frozen(normalizers.sigmoid(np.array(-1.0, np.float32))),
    }
    layer = MultiHeadAttention(F, H, **options, rngs=rngs())
    assert learnt(layer) == [(H, T, T)]
    plain = MultiHeadAttention(F, H, **jax.tree.map(
        lambda x: x.term if hasattr(x, "term") else x, options, is_leaf=lambda x: hasattr(x, "term")
    ), rngs=rngs())  # fmt: skip
    assert len(learnt(plain)) == 6
    x = normal((B, T, F), dtype="float32")
    np.testing.assert_array_equal(layer(x), plain(x))
    assert nnx.clone(layer)(x).shape == x.shape
    state = nnx.state(layer)
    assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(nnx.state(plain)))  # saved with the layer all the same


def test_what_is_frozen_in_a_call_gets_no_gradient():
    layer, x = MultiHeadAttention(F, H, rngs=rngs()), normal((B, T, F), dtype="float32")
    loss = lambda slopes, mark: jnp.sum(layer(x, mods=mark(mods.alibi(slopes))) ** 2)
    slopes = jnp.ones(H)
    assert_close(loss(slopes, frozen), loss(slopes, lambda term: term), LOOSE)
    assert not np.any(jax.grad(loss)(slopes, frozen))
    assert np.any(jax.grad(loss)(slopes, lambda term: term))
    read = Seq2SeqAttention(F, H, rngs=rngs())
    assert read(x, read.read(x), normalizer=frozen(normalizers.sigmoid(jnp.asarray(0.0)))).shape == x.shape


def test_frozen_takes_terms_alone():
    with pytest.raises(TypeError, match=r"frozen takes a score, normaliser, mod or gate, like .* got 3"):
        frozen(3)  # pyright: ignore[reportArgumentType]  # wrong on purpose
