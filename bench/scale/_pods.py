"""`python -m bench.scale._pods DIR NAME`: compiles a program for chips that are not there, and reads what it sends.

A line of standard output is the answer, a `Compiled` as JSON or {"name": .., "error": one line}.  A process of its own,
in the environment of `bench.tpu._compile`: libtpu reads it once, when it loads, and dumps the program into DIR.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jattn_kernels.chips import CHIPS, GPUS

from bench._cli import install, missing
from bench._paths import ROOT
from bench.gpu import _static, _tools, _topology
from bench.scale._hlo import Permute, permutes
from bench.tpu._compile import environment
from jattn._call.layouts import Order

if TYPE_CHECKING:
    from jax.sharding import Mesh


class BlockSizes(NamedTuple):
    """Sizes of a Transformer block."""

    features: int
    heads: int
    kv_heads: int
    hidden: int

    width = 128


@dataclasses.dataclass(frozen=True)
class Pod:
    """What is compiled: a training step, or a ring alone.

    Attributes:
        chip: its name in `jattn_kernels.chips`.
        topology: as `jax.experimental.topologies.get_topology_desc` names the slice, or the GPUs of a host.
        axes: devices along data, model and sequence.
        t: the length.
        order: in which the sequence lies.
        block: of the training step.
        ring: "jattn" or "splash", whose ring is compiled in the step's place, of the block's heads.
    """

    chip: str
    topology: str
    axes: tuple[int, int, int]
    t: int
    order: Order
    block: BlockSizes
    ring: str | None = None


MILLION = 2**20
LLAMA = BlockSizes(4096, 32, 8, 14336)  # Llama 3 8B
SMALL = BlockSizes(256, 4, 2, 512)
_V5E, _PEERS = ("v5e", "v5e:16x16"), ("v5e", "v5e:4x4", (1, 1, 16))
PODS = {
    "v5e-16x16": Pod(*_V5E, (2, 4, 32), MILLION, "zigzag", LLAMA),
    "v5e-16x16-contiguous": Pod(*_V5E, (2, 4, 32), MILLION, "contiguous", LLAMA),
    "v5p-4x4x8": Pod("v5p", "v5p:4x4x8", (2, 4, 16), MILLION, "zigzag", LLAMA),
    "tpu7x-4x4x8": Pod("tpu7x", "tpu7x:4x4x8", (2, 4, 32), MILLION, "zigzag", LLAMA),
    "v5e-16x16-ring": Pod(*_V5E, (1, 1, 256), MILLION, "zigzag", SMALL, "jattn"),
    "v5e-4x4-ring": Pod(*_PEERS, 2**16, "contiguous", SMALL, "jattn"),
    "v5e-4x4-splash": Pod(*_PEERS, 2**16, "contiguous", SMALL, "splash"),
    "h100-8-ring": Pod("h100", "1x8x1", (1, 1, 8), MILLION, "zigzag", LLAMA, "jattn"),
}
SMALLEST = {"v5e-4x4": Pod("v5e", "v5e:4x4", (2, 1, 8), 2**14, "contiguous", SMALL, "jattn")}
"""For a test."""


class Compiled(NamedTuple):
    """What came of it: what is sent, and the bytes on a device of arguments, results and what is held beside them."""

    name: str
    seconds: float
    permutes: Sequence[Permute]
    memory: int
    temporaries: int

    @property
    def asynchronous(self) -> bool:
        """Whether each permute of the loops is under way while a kernel runs."""
        looped = [one for one in self.permutes if one.loop]
        return bool(looped) and all(one.asynchronous and one.encloses for one in looped)

    def as_json(self) -> dict[str, Any]:
        return {**self._asdict(), "permutes": [one._asdict() for one in self.permutes]}

    @classmethod
    def from_json(cls, answer: dict[str, Any]) -> "Compiled":
        of = lambda one: Permute(**{**one, "encloses": tuple(one["encloses"])})
        return cls(**{**answer, "permutes": [of(one) for one in answer["permutes"]]})


def obstacle(name: str) -> str | None:
    """Why it cannot be compiled here: a clause, None if it can."""
    pod = PODS[name]
    if pod.chip in GPUS:
        return _tools.obstacle()
    absent = missing(["libtpu", *(["tokamax"] if pod.ring == "splash" else [])])
    return f"{' and '.join(absent)} not installed: {install('aot,bench')}" if absent else None


def compiled(names: Sequence[str], seconds: float) -> Iterator[tuple[str, Compiled | str]]:
    """Each name, as it comes, with what came of its program, or with the reason why there is none."""
    for name in names:
        with tempfile.TemporaryDirectory(prefix="jattn-bench-") as dump:
            command = [sys.executable, "-m", "bench.scale._pods", dump, name]
            around = _environment(name, Path(dump))
            try:
                done = subprocess.run(
                    command, cwd=ROOT, env=around, capture_output=True, text=True, timeout=seconds, check=False
                )
            except subprocess.TimeoutExpired:
                yield name, f"no program within {seconds:.0f} s"
                continue
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        answer = json.loads(lines[-1]) if lines else {"error": (done.stderr.splitlines() or ["no message"])[-1]}
        yield name, answer["error"] if "error" in answer else Compiled.from_json(answer)


TOGETHER = "--xla_gpu_collective_permute_combine_threshold_bytes=8589934592"
"""On GPU XLA sends what is larger than a threshold one after the other, and computes beside one of them alone."""


def _environment(name: str, dump: Path) -> dict[str, str]:
    around = environment(dump, "nothing", ("--xla_jf_dump_llo_text=false",))  # what XLA made, and no kernel
    if name not in PODS or PODS[name].chip not in GPUS:
        return around
    around |= _static.environment(str(dump))
    return {**around, "XLA_FLAGS": f"{around['XLA_FLAGS']} {TOGETHER}"}


def training_step(pod: Pod, mesh: Mesh) -> tuple[Callable[..., Any], list[Any]]:
    """The step of an optimiser for a block, rematerialised, whose loss is the mean square of what it computes; and the
    shapes of its arguments, which lie as in `jattn.zoo`."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    import jattn
    from jattn.zoo import _mesh

    block, n = pod.block, mesh.shape["sequence"]
    make = lambda: jattn.nn.TransformerBlock(
        block.features, block.heads, kv_heads=block.kv_heads, head_dim=block.width, hidden=block.hidden, gated=True,
        activation=jax.nn.silu, norm=nnx.RMSNorm, use_bias=False, mask=jattn.masks.causal(), rotary_base=5e5,
        dtype=jnp.bfloat16, rngs=nnx.Rngs(0),
    )  # fmt: skip
    graph, state = nnx.split(nnx.eval_shape(make))
    optimizer = optax.adamw(1e-4)

    @jax.checkpoint
    def run(state: nnx.State, x: jax.Array) -> jax.Array:
        at = jnp.arange(pod.t)
        at = jattn.parallel.zigzag(at, n, 0) if pod.order == "zigzag" else at
        return nnx.merge(graph, state)(x, positions=at)

    def step(state: nnx.State, kept: optax.OptState, x: jax.Array) -> tuple[optax.Params, optax.OptState, jax.Array]:
        loss = lambda state: jnp.mean(jnp.square(run(state, x).astype(jnp.float32)))
        value, gradients = jax.value_and_grad(loss)(state)
        updates, kept = optimizer.update(gradients, kept, state)
        return optax.apply_updates(state, updates), kept, value

    def placed(path: tuple[Any, ...], x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        along = NamedSharding(mesh, _mesh._along_model(path, x))
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=along)

    shapes = [jax.tree.map_with_path(placed, x) for x in (state, jax.eval_shape(optimizer.init, state))]
    along = NamedSharding(mesh, P("data", "sequence"))
    x = jax.ShapeDtypeStruct((mesh.shape["data"], pod.t, block.features), jnp.bfloat16, sharding=along)
    return jax.jit(step, donate_argnums=(0, 1)), [*shapes, x]


def jattn_ring(pod: Pod, mesh: Mesh) -> tuple[Callable[..., Any], list[Any]]:
    """The gradients of a causal ring alone, and the shapes of its arguments."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    import jattn

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        out = jattn.parallel.attention(
            q, k, v, mask=jattn.masks.causal(), mesh=mesh, sequence_axis="sequence", strategy="ring",
            order=pod.order, implementation="pallas_gpu" if pod.chip in GPUS else "pallas_tpu",
        )  # fmt: skip
        return jnp.sum(jnp.asarray(out, jnp.float32))

    along = NamedSharding(mesh, P(None, "sequence"))
    of = lambda heads: jax.ShapeDtypeStruct((1, pod.t, heads, pod.block.width), jnp.bfloat16, sharding=along)
    heads = pod.block.heads, pod.block.kv_heads, pod.block.kv_heads
    return jax.jit(jax.grad(loss, (0, 1, 2))), list(map(of, heads))


def splash_ring(pod: Pod, mesh: Mesh) -> tuple[Callable[..., Any], list[Any]]:
    """The gradients of tokamax's ring alone, without a mask: a causal one it takes as an array of t * t booleans."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P
    from tokamax._src.ops.experimental.tpu.splash_attention import (  # pyright: ignore[reportMissingImports]
        ring_attention_kernel as ring,
    )
    from tokamax._src.ops.experimental.tpu.splash_attention import (  # pyright: ignore[reportMissingImports]
        splash_attention_kernel as splash,
    )
    from tokamax._src.ops.experimental.tpu.splash_attention import (  # pyright: ignore[reportMissingImports]
        splash_attention_mask as masks,
    )

    n, block = mesh.shape["sequence"], pod.block
    config = splash.SplashConfig(
        block_q=1024, block_kv=1024, block_kv_compute=1024,
        block_q_dkv=1024, block_kv_dkv=1024, block_kv_dkv_compute=1024,
    )  # fmt: skip
    kernel = ring.make_ring_attention(
        masks.FullMask((pod.t, pod.t)),
        is_mqa=False,
        ring_axis="sequence",
        config=config,
        q_seq_shards=n,
        kv_seq_shards=n,
    )
    along = P(None, "sequence", None)
    attend = jax.shard_map(
        lambda kernel, q, k, v: kernel(q, k, v, None), mesh=mesh, check_vma=False,
        in_specs=(kernel.manual_sharding_spec(), along, along, along), out_specs=along,
    )  # fmt: skip
    loss = lambda q, k, v: attend(kernel, q, k, v).astype(jnp.float32).sum()
    of = lambda heads: jax.ShapeDtypeStruct(
        (heads, pod.t, block.width), jnp.bfloat16, sharding=NamedSharding(mesh, along)
    )
    return jax.jit(jax.grad(loss, (0, 1, 2))), list(map(of, (block.heads, block.kv_heads, block.kv_heads)))


_PROGRAMS = {None: training_step, "jattn": jattn_ring, "splash": splash_ring}


def compile_for(name: str, pod: Pod, dump: Path) -> Compiled:
    """Compiles a program for a pod that is not there, whose devices lie along closed loops."""
    import jax
    from jax.experimental import topologies

    import jattn

    if (gpu := GPUS.get(pod.chip)) is None:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=pod.topology).devices
    else:
        _topology.lower_for(gpu)
        devices = _topology.devices(gpu, pod.topology)
    data, model, sequence = pod.axes
    mesh = jattn.parallel.mesh(data=data, model=model, sequence=sequence, devices=devices)
    layout = functools.partial(jattn.parallel.layout, batch="data", heads="model", sequence="sequence")
    start = time.monotonic()
    with jax.set_mesh(mesh), layout(order=pod.order):
        fn, shapes = _PROGRAMS[pod.ring](pod, mesh)
        program = fn.lower(*shapes).compile()
    seconds, held = time.monotonic() - start, program.memory_analysis()
    memory = held.argument_size_in_bytes + held.output_size_in_bytes - held.alias_size_in_bytes
    memory += held.temp_size_in_bytes + held.generated_code_size_in_bytes
    dumps = [path.read_text() for path in dump.glob("*-TLP-hlo.txt")]  # for TPU, where as_text() fails on 7x
    text = max(dumps, key=len) if dumps else str(program.as_text())
    return Compiled(name, round(seconds, 1), permutes(text), memory, held.temp_size_in_bytes)


def main(dump: Path, name: str) -> None:
    """What libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        answer = compile_for(name, {**PODS, **SMALLEST}[name], dump).as_json()
    except Exception as error:  # whatever a compiler may raise: it is the answer
        answer = {"name": name, "error": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"}
    print(json.dumps(answer), file=answers, flush=True)


def fits(one: Compiled) -> bool:
    """Whether it fits in the memory of a device."""
    return one.memory < CHIPS[{**PODS, **SMALLEST}[one.name].chip].memory


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
