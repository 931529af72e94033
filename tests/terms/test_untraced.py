"""Static function masks are evaluated while a call is traced, also where its devices are only there to compile for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import core
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jattn
from jattn._terms.untraced import untraced
from tests import aot


@pytest.fixture
def mesh(monkeypatch):
    for name, value in aot.environment().items():
        monkeypatch.setenv(name, value)
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    return Mesh(np.array(devices[:1]), ("x",))


@aot.needed
def test_a_function_is_evaluated_beside_a_mesh_of_compile_only_devices(mesh):
    mask = jattn.masks.function(lambda i, j: (j <= i) & ((i * 7 + j) % 5 != 3))
    with jax.set_mesh(mesh):
        x = jax.ShapeDtypeStruct((1, 256, 2, 64), "float32", sharding=NamedSharding(mesh, PartitionSpec()))
        jax.jit(lambda q: jattn.attention(q, q, q, mask=mask)).lower(x)


@aot.needed
def test_why_it_takes_a_thread(mesh):
    """`jax.ensure_compile_time_eval` would run it on the devices of the mesh.  Once it does not, the thread may go."""
    with (
        jax.set_mesh(mesh),
        pytest.raises(Exception, match="local_devices|PjRtCompiler"),
        jax.ensure_compile_time_eval(),
    ):
        jnp.arange(4).block_until_ready()


def test_what_is_computed_is_no_part_of_what_is_traced():
    found = []

    @jax.jit
    def traced(x):
        found.append(untraced(lambda: jnp.arange(3) + 1))
        return x + 1

    text = traced.lower(1.0).as_text()
    assert not isinstance(found[0], core.Tracer)
    assert found[0].tolist() == [1, 2, 3]
    assert "iota" not in text


def test_an_error_comes_back():
    with pytest.raises(ZeroDivisionError):
        untraced(lambda: 1 / 0)
