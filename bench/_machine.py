"""The facts about a machine without which its times mean nothing."""

import datetime
import importlib.metadata
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from bench import _timing


def facts(packages: Sequence[str]) -> dict[str, object]:
    """Date, processor, cores, load, Python and the versions of the packages."""
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
    }


def matmul_gflops(size: int, with_torch: bool) -> dict[str, float]:
    """GFLOP/s of a plain float32 [size, size] product in jax and, if wanted, torch: what the machine can do."""
    a, b = np.random.default_rng(0).standard_normal((2, size, size), np.float32)
    runs = {"jax": _jax_matmul(a, b)} | ({"torch": _torch_matmul(a, b)} if with_torch else {})
    for run in runs.values():
        run()
    seconds = _timing.interleave(runs, dict.fromkeys(runs, 7))
    return {name: 2e-9 * size**3 / statistics.median(times) for name, times in seconds.items()}


def _jax_matmul(a: np.ndarray, b: np.ndarray) -> Callable[[], object]:
    product, x, y = jax.jit(lambda x, y: x @ y), jax.device_put(a), jax.device_put(b)
    return lambda: product(x, y).block_until_ready()


def _torch_matmul(a: np.ndarray, b: np.ndarray) -> Callable[[], object]:
    import torch  # pyright: ignore[reportMissingImports]  (the bench extra)

    torch.set_num_threads(os.cpu_count() or 1)
    x, y = torch.from_numpy(a), torch.from_numpy(b)
    return lambda: x @ y


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed (run from source)"


def _cpu_model() -> str:
    table = Path("/proc/cpuinfo")
    lines = table.read_text().splitlines() if table.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
