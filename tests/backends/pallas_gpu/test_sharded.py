"""Programs for eight H100 that are not there: batch and heads stay sharded, and nothing is gathered."""

import os
import subprocess
import sys

import pytest

from bench.gpu import _tools

CODE = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jattn_kernels.chips import CHIPS
import jattn
from bench.gpu import _topology

_topology.lower_for(CHIPS["h100"])
devices = np.array(_topology.devices(CHIPS["h100"], "1x1x8")).reshape(2, 4)
for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = Mesh(devices, ("data", "model"), axis_types=(kind,) * 2)
    lies = NamedSharding(mesh, PartitionSpec("data", None, "model"))
    x = lambda heads: jax.ShapeDtypeStruct((2, 512, heads, 128), jnp.bfloat16, sharding=lies)
    attend = lambda q, k, v: jattn.attention(q, k, v, mask=jattn.masks.causal(), implementation="pallas_gpu")
    loss = lambda *x: attend(*x).astype(jnp.float32).sum()
    with jax.set_mesh(mesh):
        text = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(x(8), x(4), x(4)).compile().as_text()
    print(kind.name, "all-gather" in text, "mosaic_gpu" in text)
"""


@pytest.mark.skipif(bool(_tools.obstacle()), reason=f"nothing compiles for GPUs here: {_tools.obstacle()}")
@pytest.mark.gpu
def test_batch_and_heads_stay_sharded():
    """In a process of its own, which Mosaic is told of another chip in."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["Auto", "False", "True", "Explicit", "False", "True"]
