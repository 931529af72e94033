"""Functions that are imported when they are first called: Pallas takes a while to import, and few programs need it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def deferred(load: Callable[[], Callable[P, R]]) -> Callable[P, R]:
    """The function that `load` imports and returns."""

    @functools.wraps(load, assigned=("__module__", "__name__", "__qualname__", "__doc__"), updated=())
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return load()(*args, **kwargs)

    return call
