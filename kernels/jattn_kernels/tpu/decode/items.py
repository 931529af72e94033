"""The work of a call whose heads are folded: chunks of keys of which something is seen, in order."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jattn_kernels.tiles.place import Index
from jattn_kernels.tiles.work import FULL, PARTIAL, Array, kind_of, numpy_of

MOST_LINES, MOST_CHUNKS = 2**15, 2**14  # an item has bits for no more
_KIND, _CHUNK = 2, 14  # bits of an item for its chunk's kind and number; above them stands the batch element


class Items(NamedTuple):
    """The work of each half of the keys: `[halves, most + 1]` items in order, the last repeated to the end, and
    `[halves]` how many there are."""

    items: Array
    counts: Array
    partial: bool
    """Whether some chunks may be partial."""
    full: bool
    """Whether some chunks may be full."""

    @property
    def longest(self) -> int | jax.Array:
        """How many steps the grid has for a half: the items of the half that has most."""
        xp = numpy_of(self.counts)
        return int(self.counts.max()) if xp is not jnp else jnp.max(self.counts)


def items_of(some: Array, every: Array, halves: int) -> Items:
    """The work of booleans `[b, chunks]`: of which chunks something is seen, and of which all is.

    A batch element of which nothing is seen has an empty item, so that its rows are written.
    """
    xp = numpy_of(some)
    b, chunks = some.shape
    static = xp is not jnp
    chunk = xp.arange(chunks, dtype=xp.int32)
    mine = chunk % halves == xp.arange(halves, dtype=xp.int32)[:, None, None]
    used = some & mine  # [halves, b, chunks]
    kind = kind_of(used, every)
    used = used | (~used.any(-1, keepdims=True) & (chunk == 0))
    line = xp.arange(b, dtype=xp.int32)[:, None] << (_CHUNK + _KIND)
    items = (line + (chunk << _KIND) + kind).astype(xp.int32)
    last = xp.where(used, items, 0).reshape(halves, -1).max(-1, keepdims=True)
    items = xp.where(used, items, last[..., None]).reshape(halves, -1)
    counts = used.reshape(halves, -1).sum(-1).astype(xp.int32)
    partial, full = (not static or bool((kind == x).any()) for x in (PARTIAL, FULL))
    return Items(xp.concatenate([xp.sort(items, axis=-1), last], 1), counts, partial, full)


def item_at(items: jax.Ref, halves: int, half: Index, n: Index) -> jax.Array:
    """Item n of one half; beyond the last the last, whose chunk then stays in fast memory."""
    return items[n if halves == 1 else half * (items.shape[0] // halves) + n]


def parts_of(item: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The batch element of an item, and which chunk of its keys it is, and of which kind."""
    return item >> (_CHUNK + _KIND), (item >> _KIND) & (2**_CHUNK - 1), item & (2**_KIND - 1)
