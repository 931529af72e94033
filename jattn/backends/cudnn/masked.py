"""A mask as cuDNN takes it: causal or not, a window to the left, and lengths; and what it leaves unseen."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jattn import masks
from jattn._terms import FieldValue, Operand
from jattn._terms.reach import conjuncts, span
from jattn.backends.batches import spread
from jattn.backends.cudnn.binding import RealLengths


class MaskParts(NamedTuple):
    """A mask that is windows and lengths joined with `&`, taken apart."""

    windows: masks.Mask | None
    keys: tuple[FieldValue, ...] = ()
    """How many keys are seen, each an int or an operand with axis b or none; the least counts."""
    queries: tuple[FieldValue, ...] = ()
    """How many queries see anything, likewise."""

    @property
    def padded(self) -> bool:
        return bool(self.keys or self.queries)


def parts(mask: masks.Mask | None) -> MaskParts | None:
    """The parts of a mask; None if it has others."""
    windows: list[masks.Mask] = []
    limits: dict[str, list[FieldValue]] = {"s": [], "t": []}
    for part in conjuncts(mask):
        if isinstance(part, masks.Before):
            limits[part.axis].append(part.limit)
        elif isinstance(part, masks.Window) and span(part).exact:
            windows.append(part)
        else:
            return None
    return MaskParts(functools.reduce(masks.And, windows) if windows else None, *map(tuple, limits.values()))


class Seen(NamedTuple):
    """What a mask shows of one call.  Arrays are None where it hides nothing of that kind."""

    end: int
    """The first key that no query may see, by the windows."""
    causal: bool
    window: int | None
    """Keys that a query sees, its own the last of them; None for all up to its own."""
    lengths: RealLengths | None
    """Within 1 and all: rows and keys of batch elements that have none are left out by the flags below."""
    rows: jax.Array | None
    """`[b, t]`: whether a query sees anything."""
    keys: jax.Array | None
    """`[b, end]`: whether a key is seen by anyone."""


def seen(mask: masks.Mask | None, b: int, t: int, s: int) -> Seen:
    """What a mask of parts shows of b batch elements, t queries and s keys."""
    taken = parts(mask)
    assert taken is not None, mask  # `refuses` sees to it
    end = span(taken.windows).reach(t, s)[1]
    window = span(taken.windows).open(t, end)
    causal = window.right == 0
    left = None if window.left == math.inf else int(window.left)
    width = None if left is None else left + 1
    if not taken.padded:
        return Seen(end, causal, width, None, None, None)
    queries, keys = _least(taken.queries, b, t), _least(taken.keys, b, end)
    i, j = jnp.arange(t, dtype=jnp.int32)[None], jnp.arange(end, dtype=jnp.int32)[None]
    first = jnp.zeros_like(i) if left is None else jnp.maximum(i - left, 0)
    rows = (i < queries[:, None]) & (first < keys[:, None])
    shown = jnp.minimum(keys, queries) if causal else jnp.where(queries > 0, keys, 0)
    at_least_one = RealLengths(jnp.maximum(queries, 1), jnp.maximum(keys, 1))
    return Seen(end, causal, width, at_least_one, rows, j < shown[:, None])


def _least(limits: tuple[FieldValue, ...], b: int, n: int) -> jax.Array:
    """`[b]`: the least of some limits, within 0 and n."""
    arrays = [jnp.asarray(x.array if isinstance(x, Operand) else x, jnp.int32).reshape(-1) for x in limits]
    every = [spread(x, b) for x in arrays]
    return jnp.clip(functools.reduce(jnp.minimum, every, jnp.full(b, n, jnp.int32)), 0, n)
