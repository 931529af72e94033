"""Compile-only devices: a GPU described to the compiler, where none is.

Figures come from `jattn_kernels.chips`; what that table lacks is the same for all GPUs in it, or stands here.
"""

from typing import Any

from jattn_kernels.chips import KIB, MIB, Gpu

NAMES = {
    "a100": "NVIDIA A100-SXM4-80GB",
    "l4": "NVIDIA L4",
    "h100": "NVIDIA H100 80GB HBM3",
    "h200": "NVIDIA H200",
    "b200": "NVIDIA B200",
}
"""What JAX calls a device of each chip."""
SECOND_LEVEL = {"a100": 40 * MIB, "l4": 48 * MIB, "h100": 50 * MIB, "h200": 50 * MIB, "b200": 126 * MIB}
"""Bytes of each chip's L2 cache, by NVIDIA's data sheets."""
_THREADS = {"l4": 1536}  # of one multiprocessor, where it is not 2048: CUDA's programming guide
_REGISTERS = 65536


def threads_per_core(chip: Gpu) -> int:
    """How many threads a multiprocessor holds."""
    return _THREADS.get(chip.name, 2048)


def architecture(chip: Gpu) -> str:
    """As the assembler names it: sm_90a; from Hopper on with the instructions that only this generation has."""
    major, minor = chip.capability
    return f"sm_{major}{minor}{'a' if major >= 9 else ''}"


def target_config(chip: Gpu) -> str:
    """A GpuTargetConfigProto in text form."""
    major, minor = chip.capability
    feature = "ACCELERATED_FEATURES" if major >= 9 else "NONE"
    fields = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 48 * KIB,
        "shared_memory_per_core": chip.fast_memory,
        "threads_per_core_limit": threads_per_core(chip),
        "core_count": chip.cores,
        "fpus_per_core": int(chip.flops["float32"]) // 2,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "memory_bandwidth": int(chip.bandwidth),
        "l2_cache_size": SECOND_LEVEL[chip.name],
        "clock_rate_ghz": chip.clock / 1e9,
        "device_memory_size": chip.memory,
        "shared_memory_per_block_optin": chip.granted,
        "registers_per_core_limit": _REGISTERS,
        "registers_per_block_limit": _REGISTERS,
        "thread_dim_limit_x": 1024,
        "thread_dim_limit_y": 1024,
        "thread_dim_limit_z": 64,
        "device_vendor": '"NVIDIA Corporation"',
        "name": f'"{NAMES[chip.name]}"',
        "driver_version": '"13.0.0"',
        "runtime_version": '"12.8.0"',
        "compile_time_toolkit_version": '"12.8.0"',
        "dnn_version": '"9.10.0"',
    }
    capability = f"cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {feature} }}"
    info = " ".join(f"{name}: {value}" for name, value in fields.items())
    return (
        f"gpu_device_info {{ {info} {capability} }} "
        'platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 } '
        f'device_description_str: "{NAMES[chip.name]}"'
    )


def devices(chip: Gpu, topology: str = "1x1x1") -> Any:
    """Devices that can only be compiled for: of partitions x hosts x devices."""
    from jax.experimental import topologies

    described = topologies.get_topology_desc(platform="cuda", topology=topology, target_config=target_config(chip))
    return described.devices


def mesh(chip: Gpu) -> Any:
    """A mesh of one device that can only be compiled for."""
    import jax
    import numpy as np

    return jax.sharding.Mesh(np.array(devices(chip)[:1]), ("x",))


def lower_for(chip: Gpu) -> None:
    """Have Mosaic lower for this chip in this process: it asks for a device, and without one takes Hopper."""
    import jax.experimental.mosaic.gpu.utils as utils

    setattr(utils, "_infer_arch", lambda *_, **__: chip.capability)  # noqa: B010  (the type checker knows no such name)
