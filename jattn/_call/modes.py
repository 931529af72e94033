"""The library computes the same under every setting of JAX that a user may choose for their own code.

Positions are integers and scores are not, and tiles of less rank meet tiles of more: strict dtype promotion and rank
promotion "raise" are for the code around attention, so they are lifted while the library traces its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

P = ParamSpec("P")
R = TypeVar("R")


def ordinary(fn: Callable[P, R]) -> Callable[P, R]:
    """The function, run under JAX's standard promotion of dtypes and ranks."""

    @functools.wraps(fn)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return fn(*args, **kwargs)

    return run
