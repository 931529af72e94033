"""What is known of the GPU on this machine: asked in a child, since the first question starts the device."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from typing import Any


def device_facts(request: Mapping[str, Any]) -> dict[str, Any]:
    """In the child: how JAX calls the first GPU, and which chip of the table it is; `error` if there is none."""
    import jax
    from jattn_kernels import chips

    del request
    try:
        device = jax.devices("gpu")[0]
    except RuntimeError as error:
        return {"error": str(error).strip().partition("\n")[0][:300]}
    chip = chips.of_kind(device.device_kind)
    return {"device": device.device_kind, "chip": chip and chip.name, "count": jax.local_device_count("gpu")}


def driver() -> str:
    """The driver's version, by nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip().partition("\n")[0] or "unknown"
