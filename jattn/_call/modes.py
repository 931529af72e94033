"""The library computes the same under every setting of JAX that a user may choose for their own code.

Positions are integers and scores are not, and tiles of less rank meet tiles of more: strict dtype promotion and rank
promotion "raise" are for the code around attention, so they are lifted while the library traces its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax

F = TypeVar("F", bound=Callable[..., Any])


def ordinary(fn: F) -> F:
    """The function, run under JAX's standard promotion of dtypes and ranks."""

    @functools.wraps(fn)
    def run(*args, **kwargs):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return fn(*args, **kwargs)

    return run  # type: ignore[return-value]
