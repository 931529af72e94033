"""What is computed while something is traced, and is no part of it."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def untraced(fn: Callable[[], T]) -> T:
    """fn(), computed at once.

    In a thread of its own a function just runs: what JAX is tracing, and for which mesh, it keeps to each thread.
    `jax.ensure_compile_time_eval` leaves the trace but not the mesh of `jax.set_mesh`, so that fn would run on devices
    that are only there to be compiled for.
    """
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(fn).result()
