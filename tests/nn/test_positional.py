"""Terms that say where things are, which the layers of a stack share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jattn
from jattn import mods
from jattn.nn import Alibi, RelativeBias

X = jax.random.normal(jax.random.key(0), (1, 6, 4, 8))


def _weights(mod):
    return jattn.weights(X, X, X, mods=mod)


def test_alibi_is_that_of_the_paper_and_does_not_learn():
    layer = Alibi(4)
    np.testing.assert_array_equal(layer.slopes[...], [2**-2, 2**-4, 2**-6, 2**-8])
    np.testing.assert_array_equal(_weights(layer()), _weights(mods.alibi(mods.alibi_slopes(4))))
    assert not jax.tree.leaves(nnx.state(layer, nnx.Param))
    assert len(jax.tree.leaves(nnx.state(layer))) == 1  # it is saved with the layer all the same


def test_slopes_learn_where_they_are_asked_to():
    layer = Alibi(4, learn=True, param_dtype=jnp.bfloat16)
    assert isinstance(layer.slopes, nnx.Param) and layer.slopes[...].dtype == jnp.bfloat16
    gradient = nnx.grad(lambda layer: jnp.sum(_weights(layer()) ** 2))(layer)
    assert all(np.all(x != 0) for x in jax.tree.leaves(gradient))


@pytest.mark.parametrize("bidirectional", [True, False])
def test_a_relative_bias_is_a_look_up_of_its_table(bidirectional):
    layer = RelativeBias(4, bidirectional=bidirectional, buckets=8, max_distance=20, rngs=nnx.Rngs(0))
    table = np.asarray(layer.table[...])
    assert table.shape == (4, 8) and isinstance(layer.table, nnx.Param)
    i, j = np.arange(6)[:, None], np.arange(6)[None]
    bucket = np.asarray(mods.t5_bucket(bidirectional, 8, 20)(jnp.asarray((j - i).ravel()))).reshape(6, 6)
    np.testing.assert_allclose(_weights(layer()), jattn.weights(X, X, X, bias=table[:, bucket]), rtol=2e-5)


def test_the_table_begins_as_its_initialiser_says():
    made = {"buckets": 4, "max_distance": 9, "table_init": nnx.initializers.ones, "param_dtype": jnp.float16}
    table = RelativeBias(2, **made, rngs=nnx.Rngs(0)).table[...]
    assert table.dtype == jnp.float16 and (table == 1).all()


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Alibi(0), ValueError, "heads must be at least 1, got 0"),
        (lambda: Alibi(4, learn=1), TypeError, "learn must be True or False, got 1"),  # pyright: ignore[reportArgumentType]  # wrong on purpose
        (lambda: RelativeBias(0, rngs=nnx.Rngs(0)), ValueError, "heads must be at least 1"),
        (lambda: RelativeBias(2, buckets=0, rngs=nnx.Rngs(0)), ValueError, "buckets must be at least 1"),
        (lambda: RelativeBias(2, max_distance=4, rngs=nnx.Rngs(0)), ValueError, "max_distance"),
        (lambda: RelativeBias(2, rngs=0), TypeError, "rngs must be an nnx.Rngs"),  # pyright: ignore[reportArgumentType]  # wrong on purpose
    ],
)  # fmt: skip
def test_what_they_are_not_made_of(make, error, words):
    with pytest.raises(error, match=words):
        make()
