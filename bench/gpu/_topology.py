"""Compile-only devices: a GPU described to the compiler, where none is.

Figures come from `jattn_kernels.chips`; what that table lacks is the same for all GPUs in it.
"""

from typing import Any

from jattn_kernels.chips import KIB, Gpu


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
        "threads_per_core_limit": chip.threads,
        "core_count": chip.cores,
        "fpus_per_core": int(chip.flops["float32"]) // 2,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "memory_bandwidth": int(chip.bandwidth),
        "l2_cache_size": chip.l2_cache,
        "clock_rate_ghz": chip.clock / 1e9,
        "device_memory_size": chip.memory,
        "shared_memory_per_block_optin": chip.granted,
        "registers_per_core_limit": chip.registers,
        "registers_per_block_limit": chip.registers,
        "thread_dim_limit_x": 1024,
        "thread_dim_limit_y": 1024,
        "thread_dim_limit_z": 64,
        "device_vendor": '"NVIDIA Corporation"',
        "name": f'"{chip.card}"',
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
        f'device_description_str: "{chip.card}"'
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
