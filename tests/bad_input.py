"""Calls of bad input, each with the type of the error that it gets and what its one line must name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import jattn

Q, K, V = (np.ones(x, np.float32) for x in ((2, 6, 4, 8), (2, 5, 2, 8), (2, 5, 2, 3)))
Row = tuple[Callable[[], Any], type[Exception], Sequence[str]]


def attend(q: Any = Q, k: Any = K, v: Any = V, **options: Any) -> Callable[[], Any]:
    return lambda: jattn.attention(q, k, v, **options)


def call(fn: Callable[..., Any], *args: Any, **options: Any) -> Callable[[], Any]:
    return lambda: fn(*args, **options)


def check_named(row: Row) -> None:
    """Raises unless the call raises just that type, in one line that names what it must."""
    bad, kind, named = row
    with pytest.raises(kind) as caught:
        bad()
    message = str(caught.value)
    missing = [x for x in named if x not in message]
    assert not missing, f"{message!r} does not say {missing}"
    assert "\n" not in message
    assert type(caught.value) is kind
