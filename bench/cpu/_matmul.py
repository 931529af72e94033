"""How fast the machine multiplies plain matrices: what attention's two products can reach at most."""

import os
import statistics
from collections.abc import Callable

import jax
import numpy as np

from bench import _timing


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
