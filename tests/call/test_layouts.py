"""The layout that calls are in: which there is, and what does not fit it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh

import jattn
from jattn import parallel
from jattn._call import layouts

Q = jnp.ones((2, 8, 2, 4))


def _mesh(kind: jax.sharding.AxisType = jax.sharding.AxisType.Auto) -> jax.sharding.Mesh:
    return jax.make_mesh((2,), ("x",), axis_types=(kind,))


@pytest.mark.parametrize(
    ("layout", "match"),
    [
        ({"batch": "y"}, r"'y' is no axis of the mesh, which has 'x'"),
        ({"heads": "x"}, r"heads h = 3, g = 3 do not divide by the 2 devices along 'x'"),
        ({"batch": "x"}, r"b = 1 does not divide by the 2 devices along 'x'"),
    ],
)
def test_layouts_that_do_not_fit(layout, match):
    q = jnp.ones((1, 4, 3, 4))
    with jax.set_mesh(_mesh()), parallel.layout(**layout), pytest.raises(ValueError, match=match):
        jax.jit(jattn.attention).lower(q, q, q)


def test_a_layout_is_looked_at_by_what_was_traced_before():
    attend = jax.jit(lambda q: jattn.attention(q, q, q))
    with jax.set_mesh(_mesh()):
        attend.lower(Q)
        with parallel.layout(batch="nothing"), pytest.raises(ValueError, match="'nothing' is no axis"):
            attend.lower(Q)


def test_entries_of_a_specification_are_tuples():
    assert [layouts.as_axes(x) for x in (None, "x", ("x", "y"), ["x"], ())] == [(), ("x",), ("x", "y"), ("x",), ()]
    assert layouts.named(()) == "no axis"
    assert layouts.named(("x", "y")) == "'x' and 'y'"


def test_the_innermost_layout_counts_and_has_the_mesh_of_here():
    outer, inner = (layouts.Layout((x,), (), None) for x in ("x", "y"))
    here, own = AbstractMesh((2, 2), ("x", "y")), AbstractMesh((4,), ("x",))
    assert layouts.current() is None
    with jax.sharding.use_abstract_mesh(here), layouts.using(outer):
        assert layouts.current() == dataclasses.replace(outer, mesh=here)
        with layouts.using(inner):
            assert layouts.current() == dataclasses.replace(inner, mesh=here)
        with layouts.using(dataclasses.replace(outer, mesh=own)):
            assert layouts.current() == dataclasses.replace(outer, mesh=own)
        assert layouts.current() == dataclasses.replace(outer, mesh=here)
    assert layouts.current() is None


def test_a_layout_that_names_no_axis_needs_no_mesh():
    nowhere = layouts.Layout((), (), None)
    with layouts.using(nowhere):
        assert layouts.current() == nowhere
    assert layouts.Layout(("x",), ("y",), None, "z").axes == ("x", "y", "z")


def test_a_layout_is_left_where_there_is_an_error():
    with pytest.raises(KeyError), layouts.using(layouts.Layout((), (), None)):
        raise KeyError("anything")
    assert layouts.current() is None
