"""Along which mesh axes calls lie, where a user says so."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import jattn
from jattn import masks, parallel

Q = jnp.ones((2, 8, 2, 4))


def _mesh(kind: jax.sharding.AxisType = jax.sharding.AxisType.Auto) -> jax.sharding.Mesh:
    return jax.make_mesh((2,), ("x",), axis_types=(kind,))


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
