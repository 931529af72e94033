"""Calls whose batch elements and heads lie on eight devices, against the same on one; and what their programs send.

A program of its own, as `devices` is.  `python -m tests.parallel.sharded cpu` runs everything on simulated devices,
`tpu` compiles some of it for sixteen that are not there.  It prints a line of JSON for each call.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import json
import os
import re
import sys
from collections.abc import Callable
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)  # collectives from there are wrong now and then

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jattn
from jattn import gates, masks, mods, normalizers
from tests.evaluate import QUICK
from tests.parallel.devices import gap

_QUICK: Any = QUICK
B, T, H, D = 8, 16, 8, 8
KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
SPECS = {"data": P(("data", "model")), "tensor": P(None, None, "model"), "both": P("data", None, "model")}
LAYOUT = np.random.default_rng(0).random((H, 4, 4)) < 0.6
SENT = r"= (\(?[^=]*?\)?) (all-gather|all-to-all|collective-permute|reduce-scatter|all-reduce)(?:-start)?\("


def sent(text: str) -> dict[str, int]:
    """How many collectives of each kind a program has; of gathers alone, those of more than two axes (q, k, v, out)."""
    found = collections.Counter()
    for shape, kind in re.findall(SENT, text):
        whole = (
            max(shape.count(",", at, shape.find("]", at)) for at in [m.start() for m in re.finditer(r"\[", shape)]) > 1
        )
        if kind == "all-reduce" or whole:
            found[kind] += 1
    return dict(found)


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def qkv(g: int = 4, front: tuple[int, ...] = ()) -> tuple[jax.Array, ...]:
    return normal(1, *front, B, T, H, D), normal(2, *front, B, T, g, D), normal(3, *front, B, T, g, D)


def of(options: Callable[[], dict[str, Any]], call: Callable = jattn.attention) -> Callable:
    return lambda *args: call(*args, **options())


def plain(q: Any, k: Any, v: Any, slopes: Any, cap: Any, **more: Any) -> Any:
    """With operands that are learned, dropout, and lse."""
    return jattn.attention(
        q, k, v, mask=masks.causal(), mods=(mods.alibi(slopes), mods.softcap(cap)),
        dropout=gates.dropout(0.3, 1), return_lse=True, **more,
    )  # fmt: skip


def transposed(q: Any, k: Any, v: Any) -> Any:
    """The transpose of what is linear in the values, at the queries."""
    (dv,) = jax.linear_transpose(lambda v: jattn.attention(q, k, v, sinks=SINKS, mask=masks.causal()), v)(q)
    return dv


def total(fn: Callable) -> Callable:
    floating = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
    return lambda *args: sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(fn(*args)) if floating(x))


def first(fn: Callable, n: int) -> Callable:
    """Results and gradients."""
    return lambda *args: (fn(*args), jax.grad(total(fn), tuple(range(n)))(*args))


def second(fn: Callable, n: int) -> Callable:
    """Results, gradients, and the gradients' derivatives in forward mode."""
    return lambda *args: (fn(*args), *jax.jvp(jax.grad(total(fn), tuple(range(n))), args, args))


BOTH = [SPECS["both"]] * 3
DROPOUT = {"dropout": gates.dropout(0.3, 1), "mask": masks.causal()}
LEARNED = normal(4, H), normal(5) + 3
SINKS = normal(6, H)
CALLS: dict[str, tuple[Callable, Any, Any]] = {
    **{f"plain {name}": (plain, (*qkv(), *LEARNED), [x] * 3 + [P()] * 2) for name, x in SPECS.items()},
    "shared keys": (of(lambda: {"mask": masks.causal()}), qkv(2), [BOTH[0], P("data"), P("data")]),
    "vmap of the old": (
        jax.vmap(of(lambda: DROPOUT), (0, None, None)),
        (qkv(front=(3,))[0], *qkv()[1:]),
        [P(None, *BOTH[0]), *BOTH[1:]],
    ),
    "vmap of both": (jax.vmap(of(lambda: DROPOUT)), qkv(front=(2,)), [P("data", "model")] * 3),
    "sparsemax": (of(lambda: {"normalizer": normalizers.sparsemax(), **DROPOUT}), qkv(), BOTH),
    "gumbel": (of(lambda: {"normalizer": normalizers.gumbel(jax.random.key(1), hard=True)}), qkv(), BOTH),
    "blocks": (of(lambda: {"mask": masks.blocks(LAYOUT, 4)}), qkv(), BOTH),
    "weights": (of(lambda: DROPOUT, jattn.weights), qkv(), BOTH),
    "sample": (lambda *x: jattn.sample(jax.random.key(1), *x), qkv(), BOTH),
    "linear transpose": (transposed, qkv(), BOTH),
}
"""Function, arrays, and where each of them lies."""
EXPLICIT = "plain both", "vmap of both", "sparsemax", "weights", "linear transpose"
TWICE = "plain both", "vmap of both"


def compared(fn: Callable, args: Any, specs: Any, mesh: Mesh, around: Any = None) -> dict[str, Any]:
    """The greatest difference from one device, and what the program sends."""
    wanted = jax.jit(fn, compiler_options=QUICK)(*args)
    with jax.set_mesh(mesh), around or contextlib.nullcontext():
        put = [jax.device_put(x, NamedSharding(mesh, y)) for x, y in zip(args, specs, strict=True)]
        program = jax.jit(fn).lower(*put).compile(_QUICK)
        got = program(*put)
    return {"gap": gap(jax.tree.map(np.asarray, got), wanted), "sent": sent(str(program.as_text()))}


def meshes(devices: Any, shape: tuple[int, int]) -> dict[str, Mesh]:
    array = np.array(devices).reshape(shape)
    return {name: Mesh(array, ("data", "model"), axis_types=(kind,) * 2) for name, kind in KINDS.items()}


def interpreted(q: Any, k: Any, v: Any, slopes: Any, cap: Any) -> Any:
    os.environ["JATTN_INTERPRET"] = "1"
    try:
        return plain(q, k, v, slopes, cap, implementation="pallas_tpu")
    finally:
        del os.environ["JATTN_INTERPRET"]


def inside(axes: set[str], check: bool, mesh: Mesh) -> Callable:
    """Dropout and a layout for each head inside `jax.shard_map` over some axes of the mesh."""
    spec = P(*(x if x in axes else None for x in ("data", None, "model")))
    call = of(lambda: {"mask": masks.blocks(LAYOUT, 4), "dropout": gates.dropout(0.3, 1)})
    over = jax.shard_map(call, mesh=mesh, axis_names=axes, in_specs=spec, out_specs=spec, check_vma=check)
    return lambda *args: over(*args) if jax.sharding.get_abstract_mesh().axis_names else call(*args)


def block_of_a_transformer() -> tuple[Callable, nnx.State, jax.Array]:
    layer = jattn.nn.TransformerBlock(32, 8, mask=masks.causal(), kv_heads=4, rngs=nnx.Rngs(0))
    graph, state = nnx.split(layer)
    return lambda state, x: nnx.merge(graph, state)(x), state, normal(6, B, T, 32)


def annotated(path: Any) -> P:
    """Megatron's layout: heads and hidden units along `model`, the rest on every device."""
    names = {x.key for x in path if isinstance(x, jax.tree_util.DictKey)}
    if names & {"query", "key", "value", "mlp_in"}:
        return P("model") if "bias" in names else P(None, "model")
    return P("model") if names & {"out", "mlp_out"} and "bias" not in names else P()


def of_layers(mesh: Mesh) -> dict[str, Any]:
    """A TransformerBlock, data = 2, model = 4: what its forward pass and gradients send, and the gap."""
    fn, state, x = block_of_a_transformer()
    both = jax.value_and_grad(lambda state, x: jnp.sum(jnp.sin(fn(state, x))))
    wanted = jax.jit(both, compiler_options=QUICK)(state, x)
    with jax.set_mesh(mesh):
        place = lambda path, y: jax.device_put(y, NamedSharding(mesh, annotated(path)))
        put = jax.tree_util.tree_map_with_path(place, state), jax.device_put(x, NamedSharding(mesh, P("data")))
        program = jax.jit(both).lower(*put).compile(_QUICK)
        return {"gap": gap(program(*put), wanted), "sent": sent(str(program.as_text()))}


def say(name: str, fn: Callable[[], Any]) -> None:
    """Of the calls whose names have the second argument in them, if there is one."""
    if (sys.argv[2:] or [""])[0] not in name:
        return
    try:
        found = fn()
    except Exception as error:  # reported to the process that asked
        found = {"error": f"{type(error).__name__}: {error}"[:500]}
    print(json.dumps({"name": name, "found": found}), flush=True)


def on_cpu() -> None:
    for kind, mesh in meshes(jax.devices(), (2, 4)).items():
        for name, (fn, args, specs) in CALLS.items():
            if kind == "auto" or name in EXPLICIT:
                f = (second if name in TWICE else first)(fn, len(args))
                say(f"{kind}: {name}", functools.partial(compared, f, args, specs, mesh))
        _, args, specs = CALLS["plain both"]
        say(f"{kind}: pallas_tpu", functools.partial(compared, first(interpreted, len(args)), args, specs, mesh))
    mesh = meshes(jax.devices(), (2, 4))["auto"]
    for axes, check in ({"data", "model"}, True), ({"data"}, False), ({"model"}, True):
        f = first(inside(axes, check, mesh), 3)
        around = jattn.parallel.layout("data", "model")
        say(f"inside: {'+'.join(sorted(axes))}", functools.partial(compared, f, qkv(), BOTH, mesh, around))
    say("layers", functools.partial(of_layers, mesh))


def on_tpu() -> None:
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4").devices
    said = {
        "data": {"batch": ("data", "model")},
        "tensor": {"heads": "model"},
        "both": {"batch": "data", "heads": "model"},
    }
    for kind, mesh in meshes(devices, (4, 4)).items():
        for name, spec in SPECS.items():
            place = lambda spec, *shape, mesh=mesh: jax.ShapeDtypeStruct(
                shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec)
            )
            args = [place(spec, 16, 256, n, 128) for n in (H, 4, 4)] + [place(P(), H), place(P())]
            fn = lambda *args: plain(*args, implementation="pallas_tpu")

            def compiled(args: Any = args, fn: Any = fn, mesh: Any = mesh, name: str = name, kind: str = kind) -> Any:
                around = jattn.parallel.layout(**said[name]) if kind == "auto" else contextlib.nullcontext()
                with jax.set_mesh(mesh), around:
                    program = str(jax.jit(jax.grad(total(fn), tuple(range(5)))).lower(*args).compile().as_text())
                return {"kernels": program.count("tpu_custom_call"), "sent": sent(program)}

            say(f"{kind}: {name}", compiled)
            if kind == "auto" and name == "both":
                with jax.set_mesh(mesh):
                    say("unsaid", lambda args=args, fn=fn: jax.jit(fn).lower(*args) and "lowered")


if __name__ == "__main__":
    {"cpu": on_cpu, "tpu": on_tpu}[sys.argv[1]]()
