"""Compiles cases for TPUs that are not there: `python -m tests.aot CHIP CASE ...` prints a line of JSON for each.

A process of its own, because libtpu reads its settings once, when it loads.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import pytest
from jattn_kernels.chips import TPUS

POD = "v5e:16x16"
# name: width, length; all with causal + segments + soft cap + bias + dropout, bfloat16, forward and backward
CASES = {f"d{d}-t{t}": (d, t) for d in (64, 128, 256) for t in (1000, 8192)}
LONG = dict.fromkeys(("window", "full", "causal", "causal-segments"), 1_000_000) | {"window-segments": 2**19}
"""Masks at lengths at which a list of all tiles is many times scalar memory: name and length of each case."""
LAYOUTS = {"blocks": (64, 64), "blocks-heads": (8, 64, 64)}
"""Layouts of `masks.blocks` at t = 4096."""
INSTALLED = importlib.util.find_spec("libtpu") is not None
needed = pytest.mark.skipif(not INSTALLED, reason="libtpu is not installed: pip install -e '.[aot]'")


def environment() -> dict[str, str]:
    """This process's environment, with what libtpu needs to compile without a TPU."""
    return {
        **os.environ, "JAX_PLATFORMS": "cpu", "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip


def compile_all(chip: str, names: list[str]) -> list[dict[str, Any]]:
    """What happened to each case: `name`, `kernels` (how many are in the program) and `size` of its text, or `error`."""
    command = [sys.executable, "-m", "tests.aot", chip, *names]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=900)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == len(names), f"status {done.returncode}: {done.stderr[-2000:]}"
    return [json.loads(line) for line in lines]


def _function(d: int, t: int, device: Any) -> tuple[Any, list[Any]]:
    """Gradients of attention with everything, and the shapes of its arguments."""
    import jax
    import jax.numpy as jnp

    import jattn
    from jattn import gates, masks, mods

    x, numbers = ((1, t, 4, d), jnp.bfloat16), ((4, t if t <= 1000 else 1, t), jnp.float32)

    def loss(q, k, v, bias, cap, ids, seed):
        out = jattn.attention(
            q, k, v, implementation="pallas_tpu", bias=bias, mods=(mods.softcap(cap),),
            mask=masks.causal() & masks.segments(ids), dropout=gates.dropout(0.1, seed),
        )  # fmt: skip
        return out.astype(jnp.float32).sum()

    shapes = [x, ((1, t, 2, d), jnp.bfloat16), ((1, t, 2, d), jnp.bfloat16), numbers, ((), jnp.float32)]
    shapes += [((1, t), jnp.int32), ((), jnp.uint32)]
    return jax.grad(loss, (0, 1, 2, 3, 4)), [jax.ShapeDtypeStruct(*y, sharding=device) for y in shapes]


def _long(name: str, device: Any) -> tuple[Any, list[Any]]:
    """Gradients of attention with one of the masks of `LONG` or `LAYOUTS`, at its length."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import jattn
    from jattn import masks

    def loss(q, k, v, ids):
        mask = {
            "window": lambda: masks.window(1023),
            "full": lambda: None,
            "causal": masks.causal,
            "causal-segments": lambda: masks.causal() & masks.segments(ids),
            "window-segments": lambda: masks.window(1023) & masks.segments(ids),
            **{x: functools.partial(masks.blocks, random(shape) < 0.4, 64) for x, shape in LAYOUTS.items()},
        }[name]()
        return jattn.attention(q, k, v, mask=mask, implementation="pallas_tpu").astype(jnp.float32).sum()

    t, h, random = LONG.get(name, 4096), 8 if name in LAYOUTS else 1, np.random.default_rng(0).random
    shapes = [((1, t, h, 128), jnp.bfloat16)] * 3 + [((1, t), jnp.int32)]
    return jax.grad(loss, (0, 1, 2)), [jax.ShapeDtypeStruct(*y, sharding=device) for y in shapes]


def _pod() -> tuple[Any, Any, list[Any]]:
    """Forward and backward under `shard_map` over batch and heads of a whole pod."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    import jattn
    from jattn import masks

    devices = topologies.get_topology_desc(platform="tpu", topology_name=POD).devices
    mesh = Mesh(np.array(devices).reshape(32, 8), ("batch", "heads"))
    spec = PartitionSpec("batch", None, "heads")

    def loss(q, k, v):
        attend = lambda q, k, v: jattn.attention(q, k, v, mask=masks.causal(), implementation="pallas_tpu")
        out = jax.shard_map(attend, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec)(q, k, v)
        return out.astype(jnp.float32).sum()

    shape = jax.ShapeDtypeStruct((64, 2048, 16, 128), jnp.bfloat16, sharding=NamedSharding(mesh, spec))
    return mesh, jax.grad(loss, (0, 1, 2)), [shape] * 3


def main(chip: str, *names: str) -> None:
    import jax
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    for name in names:
        if name == "pod":
            mesh, fn, shapes = _pod()
        else:
            got = topologies.get_topology_desc(platform="tpu", topology_name=TPUS[chip].topology).devices[:1]
            mesh = Mesh(np.array(got), ("x",))
            device = NamedSharding(mesh, PartitionSpec())
            fn, shapes = _function(*CASES[name], device) if name in CASES else _long(name, device)
        try:
            with jax.set_mesh(mesh):
                lowered = jax.jit(fn).lower(*shapes)
                lowered.compile()
            text = lowered.as_text()
            print(json.dumps({"name": name, "kernels": text.count("@tpu_custom_call"), "size": len(text)}), flush=True)
        except Exception as error:  # reported to the process that asked
            print(json.dumps({"name": name, "error": f"{type(error).__name__}: {error}"[:2000]}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
