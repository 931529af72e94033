"""Calls over eight simulated devices against the same on one: values, every gradient, and a derivative in forward mode.

A program of its own, since a process has as many devices as it had when JAX began.  It prints a line of JSON for each of its
arguments CASE:STRATEGY:PLACE, or with `--drawn N` for N placements that Hypothesis draws.  With PROCESSES, PROCESS and PORT in
the environment it is one of several processes, which share the devices and find each other at that port.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={8 // int(os.environ.get('PROCESSES', '1'))}"
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)  # collectives from there are wrong now and then

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jattn
from jattn import Operand, masks, parallel
from tests.cases import CASES, Sizes, make
from tests.evaluate import QUICK, _floating, _inner, _normal

PROCESSES = int(os.environ.get("PROCESSES", "1"))
SIZES = Sizes(b=2, t=32, s=48, h=4, g=2)
NAMES = ("batch", "heads", "sequence")


def _permuted(options: Any, devices: int) -> Any:
    """Options in zig-zag order."""
    order = lambda x, axis: parallel.zigzag(x, devices, axis)
    sizes = {-2: SIZES.t, -1: SIZES.s}

    def of_array(x: Any) -> Any:  # broadcastable to [b, h, t, s]
        for axis, n in sizes.items():
            if np.ndim(x) >= -axis and np.shape(x)[axis] == n:
                x = order(x, axis)
        return x

    def of(x: Any) -> Any:
        if isinstance(x, masks.Unplaced):
            return type(x)(of_array(x.array))
        if not isinstance(x, Operand):
            return x
        array = x.array
        for axis, letter in enumerate(x.axes):
            array = order(array, axis) if letter in "ts" else array
        return Operand(array, x.axes)

    found = jax.tree.map(of, options, is_leaf=lambda x: isinstance(x, (Operand, masks.Unplaced)))
    for name in ("bias", "mask"):
        if isinstance(options.get(name), (jax.Array, np.ndarray)):
            found[name] = of_array(options[name])
    return found


def gap(got: Any, wanted: Any) -> float:
    """The greatest difference, as far as the numbers are small."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True)
    gaps = []
    for x, y in pairs:
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        same = x == y  # infinities, too
        gaps.append(np.max(np.abs(np.where(same, 0, x) - np.where(same, 0, y)) / (1 + np.abs(np.where(same, 0, y)))))
    return float(max(gaps))


def compare(name: str, shape: tuple[int, int, int], order: Any, strategy: Any, **fixed: Any) -> dict[str, Any]:
    """The greatest differences of out and lse, of the gradients and of the slopes."""
    inputs = make(name, "float32", SIZES)
    leaves, tree = jax.tree.flatten(inputs)
    learn = [_floating(x) for x in leaves]
    softmax = "normalizer" not in inputs[1] or inputs[1]["normalizer"].is_softmax
    mesh = jax.make_mesh(shape, NAMES, axis_types=(AxisType.Auto,) * 3)

    def call(many: bool) -> Any:
        def fn(*arrays: Any) -> Any:
            rest = iter(arrays)
            (q, k, v), options = jax.tree.unflatten(
                tree, [next(rest) if y else x for x, y in zip(leaves, learn, strict=True)]
            )
            if not many:
                return jattn.attention(q, k, v, **options, return_lse=softmax)
            n = shape[2]
            if order == "zigzag":
                q, k, v = (parallel.zigzag(x, n) for x in (q, k, v))
                options = _permuted(options, n)
            out = parallel.attention(
                q, k, v, mesh=mesh, batch_axis="batch", head_axis="heads", sequence_axis="sequence", order=order,
                strategy=strategy, return_lse=softmax, **options, **fixed,
            )  # fmt: skip
            return jax.tree.map(lambda x: parallel.unzigzag(x, n), out) if order == "zigzag" else out

        arrays = tuple(x for x, y in zip(leaves, learn, strict=True) if y)
        cotangents, tangents = _normal(jax.eval_shape(fn, *arrays), 1), _normal(arrays, 2)

        def everything(*arrays: Any) -> Any:
            out, push = jax.linearize(fn, *arrays)
            return out, jax.linear_transpose(push, *arrays)(cotangents), _inner(cotangents, push(*tangents))

        if PROCESSES > 1:  # every process gives whole arrays, and gets whole ones
            arrays = jax.tree.map(np.asarray, arrays)
        whole = NamedSharding(mesh, PartitionSpec()) if many and PROCESSES > 1 else None
        return jax.jit(everything, compiler_options=QUICK, out_shardings=whole)(*arrays)

    got, wanted = call(True), call(False)
    return {"case": name, "shape": shape, "order": order, "strategy": strategy, "gaps": list(map(gap, got, wanted))}


PLACES = {
    "a": ((1, 1, 8), "contiguous"),
    "b": ((2, 1, 4), "zigzag"),
    "c": ((1, 2, 4), "contiguous"),
    "d": ((1, 4, 2), "zigzag"),
    "e": ((1, 1, 2), "zigzag"),
}


def inside(mesh_size: int = 8) -> dict[str, Any]:
    """Inside a `jax.shard_map` of the caller's, in bfloat16; a product of the Hessian with a vector, which goes by the twin;
    on a mesh with Explicit axes; and inside once more, the gradients of a mask's and a bias's own rows of all keys."""
    (q, k, v), _ = make("plain", "float32", SIZES)
    mask = masks.causal(16) & masks.window(20)
    mesh = jax.make_mesh((mesh_size,), ("sequence",), axis_types=(AxisType.Auto,))
    rows = jax.P(None, "sequence")
    own = lambda q, k, v: parallel.ring(q, k, v, sequence_axis="sequence", mask=mask, mods=jattn.mods.softcap(3.0))
    over = jax.shard_map(own, mesh=mesh, in_specs=(rows,) * 3, out_specs=rows)
    one = lambda q, k, v: jattn.attention(q, k, v, mask=mask, mods=jattn.mods.softcap(3.0))

    def moved(fn: Any) -> Any:
        loss = lambda q, k: jnp.sum(jnp.sin(fn(q, k, v)))
        return jax.jit(
            lambda: jax.jvp(jax.grad(loss, (0, 1)), (q, k), (jnp.cos(q), jnp.sin(k)))[1], compiler_options=QUICK
        )()

    narrow = [x.astype(jnp.bfloat16) for x in (q, k, v)]
    low = lambda fn: jax.jit(lambda: fn(*narrow).astype(jnp.float32), compiler_options=QUICK)()
    explicit = jax.make_mesh((2, 4), ("batch", "sequence"), axis_types=(AxisType.Explicit,) * 2)
    with jax.set_mesh(explicit):
        lies: dict[str, Any] = {"batch_axis": "batch", "sequence_axis": "sequence"}
        there = jax.jit(lambda: parallel.attention(q, k, v, **lies, mask=mask, mods=jattn.mods.softcap(3.0)))()
    bias = jnp.sin(jnp.arange(SIZES.h * SIZES.t * SIZES.s, dtype=jnp.float32)).reshape(SIZES.h, SIZES.t, SIZES.s)

    def pairs(attend: Any) -> Any:
        return lambda q, k, v, bias: attend(q, k, v, bias=bias, mask=masks.dense(bias[0] > -0.5))

    by = lambda how: pairs(lambda *x, **options: how(*x, sequence_axis="sequence", **options))
    within = lambda how: jax.shard_map(by(how), mesh=mesh, in_specs=(rows,) * 4, out_specs=rows)
    learned = lambda fn: jax.jit(jax.grad(lambda bias: jnp.sum(jnp.sin(fn(q, k, v, bias)))), compiler_options=QUICK)(
        bias
    )
    own_rows = [(learned(within(how)), learned(pairs(jattn.attention))) for how in (parallel.ring, parallel.gather)]
    found = (low(over), low(one)), (moved(over), moved(one)), (there, jax.jit(one)(q, k, v)), *own_rows
    return {"case": "inside", "gaps": [gap(*x) for x in found]}


def main(*arguments: str) -> None:
    if PROCESSES > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{os.environ['PORT']}", PROCESSES, int(os.environ["PROCESS"]))
        assert (jax.device_count(), jax.local_device_count()) == (8, 8 // PROCESSES)
    if arguments[0] == "--drawn":
        softmax = sorted(
            x for x in CASES
            if x not in ("additive-heads-key",) and make(x, "float32")[1].get("normalizer") is None
            and not x.startswith(("one-", "no-", "rectangular"))
        )  # fmt: skip

        @hypothesis.settings(max_examples=int(arguments[1]), derandomize=True, deadline=None, database=None)
        @hypothesis.given(
            st.sampled_from(softmax),
            st.sampled_from([PLACES[x] for x in "abcd"]),
            st.sampled_from(["ring", "gather"]),
        )
        def drawn(name: str, place: Any, strategy: Any) -> None:
            print(json.dumps(compare(name, place[0], place[1], strategy)), flush=True)

        drawn()
        return
    for argument in arguments:
        name, strategy, place = argument.split(":")
        found = inside() if name == "inside" else compare(name, *PLACES[place], strategy or None)
        print(json.dumps({"asked": argument, **found}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
