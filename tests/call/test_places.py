"""Which batch elements and heads a device has, and which sequences are gathered."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jattn
from jattn import gates, masks, mods, normalizers, parallel
from jattn._call import layouts, places
from jattn._terms import Operand, Origin
from tests.problems import problem

Q = jnp.ones((2, 8, 2, 4))


def _mesh(kind: jax.sharding.AxisType = jax.sharding.AxisType.Auto) -> jax.sharding.Mesh:
    return jax.make_mesh((2,), ("x",), axis_types=(kind,))


def _dropped(q: jax.Array) -> jax.Array:
    return jattn.attention(q, q, q, dropout=gates.dropout(0.5, 0))


def test_dropout_inside_shard_map_does_not_repeat_itself():
    spec = PartitionSpec("x")
    over = jax.jit(jax.shard_map(_dropped, mesh=_mesh(), in_specs=spec, out_specs=spec))
    with pytest.raises(ValueError, match=r"dropout depends on .* along which of 'x' .* jattn\.parallel\.layout"):
        over(Q)
    whole, first = _dropped(Q), _dropped(Q[:1])
    with parallel.layout(batch="x"):
        np.testing.assert_allclose(over(Q), whole, atol=1e-6)
    with parallel.layout():  # all devices do the same, since that is what is said
        np.testing.assert_allclose(over(Q), jnp.concatenate([first] * 2), atol=1e-6)


def test_functions_are_told_which_of_all_batch_elements_and_heads():
    def call(q: jax.Array) -> jax.Array:
        tilted = mods.function(lambda s, b, h, i, j: s - (1 + b) * 0.3 * h * abs(i - j))
        relu = normalizers.function(lambda s: jnp.maximum(s, 0), elementwise=True)
        later = masks.function(lambda b, h, i, j: j <= i - h)
        soft, own = (
            jattn.attention(q, q, q, mods=tilted, mask=later, normalizer=x) for x in (normalizers.softmax(), relu)
        )
        return soft + own

    q = jax.random.normal(jax.random.key(0), (2, 300, 2, 4))  # so long that the elementwise one has two blocks of keys
    wanted = call(q)
    layouts = parallel.layout(batch="x"), parallel.layout(heads="x")
    for layout, spec in zip(layouts, (PartitionSpec("x"), PartitionSpec(None, None, "x")), strict=True):
        over = jax.jit(jax.shard_map(call, mesh=_mesh(), in_specs=spec, out_specs=spec))
        with pytest.raises(ValueError, match=r"function depends on .* along which of 'x' .* jattn\.parallel\.layout"):
            over(q)
        sharded = jax.jit(call)(jax.device_put(q, NamedSharding(_mesh(), spec)))
        with layout:
            for got in (sharded, over(q)):
                np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_a_sharded_sequence_is_gathered_and_said_to_be(kind):
    mesh = _mesh(getattr(jax.sharding.AxisType, kind))
    with jax.set_mesh(mesh):
        q = jax.device_put(Q, NamedSharding(mesh, PartitionSpec(None, "x")))
        assert "queries and keys, sharded along 'x'" in str(jattn.explain(q, q, q))
        with pytest.warns(UserWarning, match="gathers queries and keys, which are sharded along 'x'"):
            got = jattn.attention(q, q, q)
    np.testing.assert_allclose(got, jattn.attention(Q, Q, Q), atol=1e-6)


def test_one_device_has_no_part_of_anything():
    assert places.manual() == ()
    origin = Origin()
    with layouts.using(layouts.Layout(("x",), ("y",), None)):
        assert places.of_device(origin, {"b": 2, "h": 4}) is origin


def test_a_device_begins_where_those_before_it_end():
    """What `positions=` says comes first, and heads that it does not name stay unknown."""
    found = []

    def call(x):
        for given in (Origin(), Origin(b=3), Origin(h=1)):
            there = places.of_device(given, {"b": 3, "h": 2})
            found.append(there)
        one = there_of(found[0].b)
        return x + one

    there_of = lambda x: x.array if isinstance(x, Operand) else x
    mesh, spec = _mesh(), PartitionSpec("x")
    with layouts.using(layouts.Layout(("x",), (), mesh.abstract_mesh)):
        begins = jax.shard_map(call, mesh=mesh, in_specs=spec, out_specs=spec)(jnp.zeros(2, jnp.int32))
    assert begins.tolist() == [0, 3]
    first, given, of_heads = found
    assert isinstance(first.b, Operand) and first.h is None
    assert given.b == 3
    assert isinstance(of_heads.b, Operand) and of_heads.h == 1


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({}, ""),
        ({"mask": masks.causal() & masks.blocks(np.ones((2, 2), bool), 4)}, ""),
        ({"mods": mods.function(lambda s, i, j: s - j)}, ""),
        ({"mask": ~masks.blocks(np.ones((2, 2, 2), bool), 4)}, "not"),
        ({"mods": mods.function(lambda s, b, h, i, j: s - h)}, "function"),
        ({"gates": gates.dropout(0.5, 0)}, "dropout"),
        ({"normalizer": normalizers.gumbel(jax.random.key(0))}, "Gumbel noise"),
    ],
    ids=["nothing", "mask", "function", "layout of heads", "function of heads", "dropout", "gumbel"],
)
def test_which_terms_are_told_their_batch_element_or_head(options, what):
    assert places._numbered(problem((Q, Q, Q), options)) == what


@pytest.mark.parametrize("spec", [PartitionSpec(None, "x"), PartitionSpec("x"), PartitionSpec()], ids=str)
def test_a_sequence_is_along_what_its_second_axis_is(spec):
    q = jax.device_put(Q, NamedSharding(_mesh(), spec))
    assert places.sequence(problem((Q, q, Q), {})) == (("x",) if spec == PartitionSpec(None, "x") else ())
