"""Compiles tile functions for an H100 that is not there: `python -m tests.kernels.gpu.compiled` prints a line for each failure.

A process of its own, because XLA reads its flags once, and because of the compile-only device.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jattn_kernels.gpu.lowering import Column, Kind, Row, Table, lowered
from jax import lax

SHAPE = (64, 128)
TOGETHER = 9  # functions in one kernel
H100 = """gpu_device_info { threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000
l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84942979072 shared_memory_per_block_optin: 232448
cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES } registers_per_core_limit: 65536
registers_per_block_limit: 65536 thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
device_vendor: "NVIDIA Corporation" name: "NVIDIA H100 80GB HBM3" driver_version: "13.0.0" runtime_version: "12.8.0"
compile_time_toolkit_version: "12.8.0" dnn_version: "9.10.0" } platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 } device_description_str: "NVIDIA H100 80GB HBM3"
"""
TABLES = [
    (jnp.float32, jnp.float32),
    (jnp.int32, jnp.int32),
    (jnp.uint32, jnp.uint32),
    (jnp.bfloat16, jnp.bfloat16),
    (jnp.int8, jnp.bool_),
]
"""Dtypes in memory and of what a function sees."""

u32, f32 = jnp.uint32, jnp.float32


_OF_SCORES: dict[str, Any] = dict(
    exp=jnp.exp,
    exp2=jnp.exp2,
    log=lambda s: jnp.log(jnp.abs(s) + 1),
    log2=lambda s: jnp.log2(jnp.abs(s) + 1),
    log1p=lambda s: jnp.log1p(jnp.abs(s)),
    expm1=jnp.expm1,
    tanh=jnp.tanh,
    sin=jnp.sin,
    cos=jnp.cos,
    tan=jnp.tan,
    sinh=jnp.sinh,
    cosh=jnp.cosh,
    asin=jnp.arcsin,
    acos=jnp.arccos,
    atan=jnp.arctan,
    asinh=jnp.arcsinh,
    acosh=jnp.arccosh,
    atanh=jnp.arctanh,
    sqrt=lambda s: jnp.sqrt(jnp.abs(s)),
    rsqrt=lax.rsqrt,
    cbrt=jnp.cbrt,
    square=jnp.square,
    floor=jnp.floor,
    ceil=jnp.ceil,
    round=jnp.round,
    round_away=lambda s: lax.round(s, lax.RoundingMethod.AWAY_FROM_ZERO),
    trunc=jnp.trunc,
    sign=jnp.sign,
    abs=jnp.abs,
    neg=lambda s: -s,
    erf=lax.erf,
    erfc=lax.erfc,
    erf_inv=lax.erf_inv,
    logistic=lax.logistic,
    integer_pow=lambda s: s**5,
    inv=lambda s: s**-2,
    pow=lambda s: jnp.abs(s) ** 1.5,
    is_finite=lambda s: jnp.where(jnp.isfinite(s), s, 0.0),
    isnan=lambda s: jnp.where(~jnp.isnan(s), s, 0.0),
    clip=lambda s: jnp.clip(s, -1, 1),
    rem=lambda s: lax.rem(s, f32(2)),
    mod=lambda s: s % 3,
    nextafter=lambda s: jnp.nextafter(s, s + 1),
    reduce_precision=lambda s: lax.reduce_precision(s, 8, 7) + lax.reduce_precision(s, 5, 10),
    bf16=lambda s: (s.astype(jnp.bfloat16) * jnp.bfloat16(2)).astype(f32),
    f16=lambda s: jnp.tanh(s.astype(jnp.float16)).astype(f32),
    f2i=lambda s: s.astype(jnp.int32).astype(f32),
    f2u=lambda s: s.astype(u32).astype(f32),
    f2b=lambda s: s.astype(bool).astype(f32),
    gelu=lambda s: jax.nn.gelu(s, approximate=False),
    softplus=jax.nn.softplus,
    silu=jax.nn.silu,
    logaddexp=lambda s: jnp.logaddexp(s, 0.0),
    stop=lax.stop_gradient,
    remat=jax.checkpoint(jnp.sin),
    fori=lambda s: lax.fori_loop(0, 4, lambda n, x: x * 0.5 + n, s),
    maxmin=lambda s: jnp.minimum(jnp.maximum(s, -0.5), 0.5),
    bitcast=lambda s: lax.bitcast_convert_type(lax.bitcast_convert_type(s, jnp.int32) ^ 1, f32),
)


def mix(x):
    x = x ^ (x >> 16)
    x = x * u32(0x7FEB352D)
    x = x ^ (x >> 15)
    x = x * u32(0x846CA68B)
    return x ^ (x >> 16)


FUNCTIONS: dict[str, Any] = {n: lambda s, i, j, f=f: f(s) for n, f in _OF_SCORES.items()}
FUNCTIONS.update(
    atan2=lambda s, i, j: jnp.arctan2(s, s - 1),
    alibi=lambda s, i, j: s - 0.5 * (i - j),
    mods=lambda s, i, j: jnp.where(((i - j) % 3 == 0) & (i // 64 == j // 64), s, 0.0),
    rowbool=lambda s, i, j: jnp.where((i < 5) & (j > 70), s, 0.0),
    rowbool2=lambda s, i, j: jnp.where((i < 5) | ~(j > 70) ^ (i > j), s, 0.0),
    rowonly=lambda s, i, j: jnp.where(i < 5, s, 0.0),
    boolsel=lambda s, i, j: jnp.where(jnp.where(i < j, i < 5, j < 70), s, 0.0),
    boolint=lambda s, i, j: s + (i < j).astype(jnp.int32) + (i < 3) + (j < 70).astype(f32),
    booleq=lambda s, i, j: jnp.where((i < 5) == (j < 70), s, 0.0),
    hash=lambda s, i, j: jnp.where(mix(mix(i.astype(u32) + u32(7)) ^ j.astype(u32)) < u32(1 << 30), s, 0.0),
    popc=lambda s, i, j: s + lax.population_count(i) * lax.clz(j),
    shifts=lambda s, i, j: s + ((i << 2) >> 1) + lax.shift_right_logical(j - i, jnp.full_like(j - i, 3)),
    iabs=lambda s, i, j: s + jnp.abs(i - j) + jnp.sign(i - j) + (-j),
    isn=lambda s, i, j: (
        s + lax.select_n(jnp.clip(i - j, 0, 2), jnp.broadcast_to(i, s.shape), jnp.broadcast_to(j, s.shape), i - j)
    ),
    umax=lambda s, i, j: s + jnp.maximum(i.astype(u32), j.astype(u32)).astype(f32),
    rowmath=lambda s, i, j: s * jnp.log1p(i.astype(f32)) + jnp.expm1(-j.astype(f32)) ** 1.5 + jnp.floor(j / 3),
    inot=lambda s, i, j: s + (~i) + (~(i - j)),
    small=lambda s, i, j: s + jnp.take(jnp.arange(8.0), jnp.clip(i - j, 0, 7)),
    vjp=lambda s, i, j: jax.vjp(lambda x: jnp.where(i > j, jnp.exp(x) * jnp.tanh(x), x * x), s)[1](s)[0],
    rowsum=lambda s, i, j: s + jax.vjp(lambda x: x * s, i.astype(f32))[1](s)[0],
    of_columns=lambda s, i, j: s + jnp.broadcast_to(j.astype(f32), s.shape),
    scalar=lambda s, i, j: s + jnp.log1p(jnp.float32(2)),
)


def look_ups(s: jax.Array, i: jax.Array, j: jax.Array, table: jax.Array) -> jax.Array:
    """With indices of every kind."""
    places = (i % 7, j % 7, jnp.clip(j - i, 0, 7), 3)
    return s + sum(table[place].astype(f32) for place in places)


def compile_all() -> list[str]:
    """What failed, of a process that compiles everything."""
    environment = {
        **os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_gpu_autotune_level=0",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.kernels.gpu.compiled"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    from jattn_kernels.gpu.look_up import look_up
    from jax.experimental import topologies
    from jax.experimental.pallas import mosaic_gpu as plgpu
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    tile = plgpu.Layout.WGMMA
    layouts: dict[Kind, Any] = {"tile": tile, "row": tile.reduce(1), "column": tile.reduce(0)}

    class Warpgroup:
        """The machine as a kernel has it."""

        def full(self, value: Any, shape: tuple[int, ...], kind: Kind) -> jax.Array:
            return plgpu.layout_cast(jnp.full(shape, value), layouts[kind])

        def broadcast(self, x: jax.Array, axis: int, shape: tuple[int, int]) -> jax.Array:
            return plgpu.layout_cast(lax.broadcast_in_dim(x, shape, (axis,)), tile)

        def row_sum(self, x: jax.Array) -> jax.Array:
            return jnp.sum(x, 1)

        def take(self, ref: Any, index: jax.Array, kind: Kind) -> jax.Array:
            return look_up(ref, index, layouts.get(kind))

    devices = topologies.get_topology_desc(platform="cuda", topology="1x1x1", target_config=H100).devices[:1]
    mesh = Mesh(np.array(devices), ("device",))
    here = NamedSharding(mesh, PartitionSpec())

    def compile(fns: list[Any], tables: list[tuple[Any, Any]], shared: bool) -> None:
        def kernel(x_ref: Any, *refs: Any) -> None:
            n = len(tables)
            there, (out_ref, x_mem, out_mem, barrier, *copies) = refs[:n], refs[n:]
            copied = zip(there, copies, strict=True) if shared else ()
            for source, target in ((x_ref, x_mem), *copied):
                plgpu.copy_gmem_to_smem(source, target, barrier)
                plgpu.barrier_wait(barrier)
            x = plgpu.layout_cast(x_mem[...], tile)
            i = (
                plgpu.broadcasted_iota(jnp.int32, SHAPE[:1], 0, layout=layouts["row"])
                + lax.axis_index("block") * SHAPE[0]
            )
            j = plgpu.broadcasted_iota(jnp.int32, SHAPE[1:], 0, layout=layouts["column"]) + SHAPE[1]
            memories = copies if shared else there
            held = [Table(ref, (128,), seen) for ref, (_, seen) in zip(memories, tables, strict=True)]
            x = x + lowered(lambda i, j: 0.0 * (i - j), SHAPE, Warpgroup())(Row(i), Column(j))  # Mosaic wants them used
            for fn in fns:
                each: list[Any] = [(t,) for t in held] or [()]
                for t in each:
                    x = plgpu.layout_cast(lowered(fn, SHAPE, Warpgroup())(x, Row(i), Column(j), *t), tile)
            out_mem[...] = x
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(out_mem, out_ref)
            plgpu.wait_smem_to_gmem(0)

        transforms = (plgpu.TilingTransform((8, 32)), plgpu.SwizzleTransform(128))
        memory = plgpu.SMEM(SHAPE, f32, transforms=transforms)
        in_shared = [plgpu.SMEM((128,), stored) for stored, _ in tables] if shared else []
        run = plgpu.kernel(
            kernel, out_type=jax.ShapeDtypeStruct(SHAPE, f32), grid=(2,), grid_names=("block",),
            scratch_types=[memory, memory, plgpu.Barrier(), *in_shared],
            compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        )  # fmt: skip
        shapes = [jax.ShapeDtypeStruct(SHAPE, f32, sharding=here)]
        shapes += [jax.ShapeDtypeStruct((128,), stored, sharding=here) for stored, _ in tables]
        with jax.set_mesh(mesh):
            jax.jit(run).lower(*shapes).compile()

    names = list(FUNCTIONS)
    todo = [(names[n : n + TOGETHER], [], False) for n in range(0, len(names), TOGETHER)]
    todo += [([f"look-ups in {'shared' if s else 'global'} memory"], TABLES, s) for s in (True, False)]
    failed = []
    for group, tables, shared in todo:
        try:
            compile([look_ups] if tables else [FUNCTIONS[name] for name in group], tables, shared)
        except Exception as error:  # reported to the process that asked
            failed.append(f"{group}: {type(error).__name__}: {error}"[:500])
    print(json.dumps(failed), flush=True)


if __name__ == "__main__":
    main()
