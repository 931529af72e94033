"""Where the random bits of a layer's dropout come from."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jattn import gates
from jattn.nn._dropout import drawn, feeds


def _gate(rngs: nnx.Rngs):
    return gates.dropout(0.25, jax.random.bits(rngs.dropout(), dtype=jnp.uint32))


def _same(one, other):
    leaves = [jax.tree.leaves(x) for x in (one, other)]
    return jax.tree.structure(one) == jax.tree.structure(other) and all(map(jnp.array_equal, *leaves))


@pytest.mark.parametrize(("streams", "fed"), [({"dropout": 1}, True), ({"default": 1}, True), ({"params": 1}, False)])
def test_a_stream_named_dropout_or_the_default_feeds_it(streams, fed):
    rngs = nnx.Rngs(**streams)
    assert feeds(rngs) == fed
    if fed:
        assert _same(drawn(0.25, None, rngs), _gate(nnx.Rngs(**streams)))
        return
    with pytest.raises(ValueError, match=r"dropout = 0.25 needs a stream of random keys: .*rngs=nnx.Rngs\(dropout=0\)"):
        drawn(0.25, None, rngs)


def test_what_a_call_is_given_comes_before_the_layers_own():
    own = nnx.Rngs(dropout=3)
    assert _same(drawn(0.25, own.dropout, nnx.Rngs(dropout=4)), _gate(nnx.Rngs(dropout=4)))
    assert _same(drawn(0.25, own.dropout, nnx.Rngs(dropout=4).dropout), _gate(nnx.Rngs(dropout=4)))
    assert _same(drawn(0.25, own.dropout, None), _gate(nnx.Rngs(dropout=3)))  # of which nothing was drawn before


def test_each_call_draws_anew():
    own = nnx.Rngs(dropout=3)
    assert not _same(drawn(0.25, own.dropout, None), drawn(0.25, own.dropout, None))


def test_where_there_is_no_stream_it_is_said():
    with pytest.raises(ValueError, match="turn dropout off with eval"):
        drawn(0.25, None, None)
    with pytest.raises(TypeError, match="rngs must be an nnx.Rngs"):
        drawn(0.25, None, 0)  # pyright: ignore[reportArgumentType]  # wrong on purpose
