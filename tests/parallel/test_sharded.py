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
from jattn import masks, normalizers
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
    assert len(found) == 23
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


@pytest.mark.parametrize("options", [{}, {"dtype": "int8"}, {"slack": 4}], ids=str)
@pytest.mark.parametrize("placed", [(), ("x",), ("length",), ("x", "length")], ids=str)
def test_a_cache_stays_where_its_examples_lie(options, placed):
    """Along an Explicit axis too, wherever the arrays lie that come to it."""
    mask = masks.causal() & masks.window(3)
    layer = jattn.nn.MultiHeadAttention(16, 4, mask=mask, rotary_base=1e4, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (4, 6, 16))
    lengths = jnp.array([2, 0, 1, 1])
    step = lambda x, cache, n: layer.decode(x, cache, lengths=n)
    _, cache = layer.decode(x[:, :4], layer.cache(12, 4, **options))
    wanted, _ = step(x[:, 4:], cache, lengths)
    mesh = _mesh(jax.sharding.AxisType.Explicit)
    put = lambda x: jax.device_put(x, NamedSharding(mesh, PartitionSpec("x")))
    names = ("key", "value", "key_scale", "value_scale")
    own = {name: None if getattr(cache, name) is None else put(getattr(cache, name)) for name in names}
    cache = cache._replace(**own, length=put(cache.length) if "length" in placed else cache.length)
    with jax.set_mesh(mesh):
        got, after = jax.jit(step)(put(x[:, 4:]) if "x" in placed else x[:, 4:], cache, lengths)
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert {x.sharding.spec[0] for x in (got, after.key, after.length)} == {"x"}


def test_a_cache_in_pages_takes_what_lies_along_an_explicit_axis():
    """Its pages are of no example, so that a step is computed where the pages are."""
    layer = jattn.nn.MultiHeadAttention(16, 4, mask=masks.causal(), rotary_base=1e4, rngs=nnx.Rngs(0))
    x, lengths = jax.random.normal(jax.random.key(1), (4, 6, 16)), jnp.array([2, 0, 1, 1])
    _, cache = layer.decode(x[:, :4], layer.cache(12, 4, page=4))
    wanted, _ = layer.decode(x[:, 4:], cache, lengths=lengths)
    mesh = _mesh(jax.sharding.AxisType.Explicit)
    put = lambda x: jax.device_put(x, NamedSharding(mesh, PartitionSpec("x")))
    with jax.set_mesh(mesh):
        got, after = jax.jit(layer.decode)(put(x[:, 4:]), cache, lengths=put(lengths))
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert after.length.tolist() == [6, 4, 5, 5]


@pytest.mark.parametrize(
    "options",
    [{"implementation": "reference"}, {"normalizer": normalizers.sparsemax()}],
    ids=["reference", "sparsemax"],
)
def test_whole_rows_inside_of_a_shard_map_over_some_of_the_explicit_axes(options):
    q = jax.random.normal(jax.random.key(1), Q.shape)
    attend = lambda q: jattn.attention(q, q, q, mask=masks.causal(), **options)
    mesh = jax.make_mesh((2, 1), ("x", "y"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        put = jax.device_put(q, NamedSharding(mesh, PartitionSpec("x", None, "y")))
        over = PartitionSpec("x")
        got = jax.jit(jax.shard_map(attend, in_specs=over, out_specs=over, axis_names={"x"}))(put)
    np.testing.assert_allclose(got, attend(q), atol=1e-6)
