"""Batch elements and heads that lie on several devices: as on one, and nothing that is sharded is gathered."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import jattn
from jattn import gates, masks, mods, normalizers, parallel
from tests import aot

Q = jnp.ones((2, 8, 2, 4))


def _run(where: str, environment: dict[str, str]) -> dict[str, dict]:
    command = [sys.executable, "-m", "tests.parallel.sharded", where]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-4000:]
    lines = map(json.loads, done.stdout.splitlines())
    return {x["name"]: x["found"] for x in lines}


def test_simulated_devices():
    """Every kind of call, differentiated, vmapped and inside shard_map; only gradients of what is shared are summed."""
    found = _run("cpu", {**os.environ, "JAX_PLATFORMS": "cpu"})
    assert len(found) == 21
    for name, one in found.items():
        assert "error" not in one, (name, one)
        assert one["gap"] < 2e-5, (name, one)
        assert set(one["sent"]) <= {"all-reduce"}, (name, one)


@aot.needed
def test_compiled_for_sixteen_tpus():
    found = _run("tpu", aot.environment())
    assert "axes b and h lie on, with jattn.parallel.layout" in found.pop("unsaid")["error"]
    assert len(found) == 6
    for name, one in found.items():
        assert one.get("kernels") == 2, (name, one)
        assert set(one["sent"]) <= {"all-reduce"}, (name, one)


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


def test_layouts_that_name_nothing():
    with pytest.raises(TypeError, match="layout: heads must name axes of a mesh, got 3"):
        parallel.layout(heads=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'x' is named twice"):
        parallel.layout(batch=("x", "y"), heads="x")
    with parallel.layout(batch="x"), pytest.raises(ValueError, match="axes of no mesh"):
        jattn.attention(Q, Q, Q)
    with pytest.raises(TypeError, match="layout: sequence must name an axis of a mesh, got 3"):
        parallel.layout(sequence=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'x' is named twice, in .* sequence='x'"):
        parallel.layout(batch="x", sequence="x")
    with pytest.raises(ValueError, match="beside a sequence batch and heads lie along an axis each"):
        parallel.layout(batch=("x", "y"), sequence="z")
    with pytest.raises(ValueError, match="layout: order must be one of .* got 'striped'"):
        parallel.layout(sequence="x", order="striped")  # type: ignore[arg-type]
    with parallel.layout(sequence="x"), pytest.raises(ValueError, match="axes of no mesh"):
        jattn.attention(Q, Q, Q)


@pytest.mark.parametrize("order", ["contiguous", "zigzag"])
def test_layers_attend_along_a_sequence_that_a_layout_names(order):
    """Positions are those of one device, in either order; nothing but what goes round is sent."""
    layer = jattn.nn.MultiHeadAttention(16, 4, kv_heads=2, mask=masks.causal(), rotary_base=1e4, rngs=nnx.Rngs(0))
    there, back = (parallel.zigzag, parallel.unzigzag) if order == "zigzag" else (lambda x, *_: x,) * 2
    graph, state = nnx.split(layer)
    x, at = jax.random.normal(jax.random.key(1), (2, 8, 16)), there(jnp.arange(8), 2, 0)
    with jax.set_mesh(_mesh()), parallel.layout(sequence="x", order=order):
        rows = NamedSharding(_mesh(), PartitionSpec(None, "x"))
        run = jax.jit(lambda state, x: nnx.merge(graph, state)(x, positions=at), in_shardings=(None, rows))
        placed = jax.device_put(there(x, 2), rows)
        program = run.lower(state, placed).compile()
        got = program(state, placed)
    np.testing.assert_allclose(back(jnp.asarray(got), 2), layer(x), atol=1e-5)
    assert "collective-permute" in str(program.as_text())
    assert "all-gather" not in str(program.as_text())


@pytest.mark.parametrize("options", [{}, {"page": 4}, {"dtype": "int8"}, {"page": 4, "dtype": "int8"}], ids=str)
def test_a_cache_stays_where_its_heads_lie(options):
    """A step of decoding sends what the last projection adds up, and nothing of the cache."""
    layer = jattn.nn.MultiHeadAttention(16, 4, kv_heads=2, mask=masks.causal(), rotary_base=1e4, rngs=nnx.Rngs(0))
    graph, state = nnx.split(layer)
    x = jax.random.normal(jax.random.key(1), (2, 9, 16))
    _, cache = layer.decode(x[:, :6], layer.cache(12, 2, **options))
    wanted, _ = layer.decode(x[:, 6:7], cache)

    def place(names, leaf):
        projection = jax.tree_util.keystr(names)
        if "kernel" in projection:
            return PartitionSpec("x") if "out" in projection else PartitionSpec(None, "x")
        return PartitionSpec("x") if "bias" in projection and "out" not in projection else PartitionSpec()

    mesh = _mesh()
    on = lambda spec: NamedSharding(mesh, spec)
    state = jax.tree_util.tree_map_with_path(lambda names, leaf: jax.device_put(leaf, on(place(names, leaf))), state)
    rows = PartitionSpec(None, None, "x")  # [b, s, g, d], or pages of it, and scales without d
    for name in ("key", "value", "key_scale", "value_scale"):
        if (array := getattr(cache, name)) is not None:
            cache = cache._replace(**{name: jax.device_put(array, on(rows))})
    step = jax.jit(lambda state, x, cache: nnx.merge(graph, state).decode(x, cache))
    program = step.lower(state, x[:, 6:7], cache).compile()
    got, after = program(state, x[:, 6:7], cache)
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert after.key.sharding.is_equivalent_to(on(rows), after.key.ndim)
    assert "all-reduce" in str(program.as_text())
    assert not [x for x in ("all-gather", "all-to-all", "collective-permute") if x in str(program.as_text())]


def test_a_layout_is_looked_at_by_what_was_traced_before():
    attend = jax.jit(lambda q: jattn.attention(q, q, q))
    with jax.set_mesh(_mesh()):
        attend.lower(Q)
        with parallel.layout(batch="nothing"), pytest.raises(ValueError, match="'nothing' is no axis"):
            attend.lower(Q)


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_a_sharded_sequence_is_gathered_and_said_to_be(kind):
    mesh = _mesh(getattr(jax.sharding.AxisType, kind))
    with jax.set_mesh(mesh):
        q = jax.device_put(Q, NamedSharding(mesh, PartitionSpec(None, "x")))
        assert "queries and keys, sharded along 'x'" in str(jattn.explain(q, q, q))
        with pytest.warns(UserWarning, match="gathers queries and keys, which are sharded along 'x'"):
            got = jattn.attention(q, q, q)
    np.testing.assert_allclose(got, jattn.attention(Q, Q, Q), atol=1e-6)
