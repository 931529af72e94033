"""Counts the copies of activations in two ways to project to heads, compiled for a TPU v5e that need not be there.

`python docs/copies.py` needs libtpu, and prints a line of JSON: [forward, gradient] of each way.
"""

import json
import math
import os
import re

TPU = {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
os.environ.update({"JAX_PLATFORMS": "cpu", **TPU})

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import topologies  # noqa: E402

import jattn  # noqa: E402
from jattn import masks  # noqa: E402

b, t, D, h, d = 4, 2048, 1024, 8, 128


# begin
def flat(x, wq, wk, wv, wo):  # [D, h * d], and wo [h * d, D]
    q, k, v = ((x @ w).reshape(b, t, h, d) for w in (wq, wk, wv))
    out = jattn.attention(q, k, v, mask=masks.causal())
    return out.reshape(b, t, h * d) @ wo


def by_head(x, wq, wk, wv, wo):  # [D, h, d], and wo [h, d, D]
    q, k, v = (jnp.einsum("btD,Dhd->bthd", x, w) for w in (wq, wk, wv))
    out = jattn.attention(q, k, v, mask=masks.causal())
    return jnp.einsum("bthd,hdD->btD", out, wo)


# end
def gradient(fn):
    """The gradients with respect to all arguments, for a cotangent that comes last."""
    return lambda *given: jax.vjp(fn, *given[:-1])[1](given[-1])


def copies(fn, shapes):
    """How many arrays as large as the activations the compiled program copies."""
    device = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0]
    mesh = jax.sharding.Mesh(np.array([device]), ("x",))
    here = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    arguments = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=here) for shape in shapes]
    with jax.set_mesh(mesh):
        program = jax.jit(fn).lower(*arguments).compile().as_text()
    sizes = re.findall(r"= \w+\[([\d,]+)\]\S* copy\(", program)
    return sum(math.prod(map(int, size.split(","))) >= b * t * D for size in sizes)


def main():
    x = (b, t, D)
    ways = {flat: [x, *[(D, h * d)] * 3, (h * d, D)], by_head: [x, *[(D, h, d)] * 3, (h, d, D)]}
    counts = {fn.__name__: [copies(fn, shapes), copies(gradient(fn), [*shapes, x])] for fn, shapes in ways.items()}
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
