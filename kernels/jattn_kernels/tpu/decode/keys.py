"""Keys and values in fast memory: copied there ahead of the step that takes them, and numbers of 8 bits.

Pallas keeps count of each array by itself, on the scalar core, which takes as long for a step as a good part of its
products.  Copies that all begin and end together need one count, and their own number of slots.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jattn_kernels.tiles.place import Index
from jattn_kernels.tpu.decode.fold import Fold, entry

SLOTS = (
    3  # items in fast memory.  With two, a copy waits for the item before it, and that for what a copy takes to begin
)
ALONG = "", "columns", "columns", "keys", "keys"  # what queries, keys, values and both scales have a stretch of
_UNROLLED = 64  # pages whose copies begin in one go: a loop takes longer than a small page does to arrive


class Copies:
    """Of queries, keys and values, and scales where there are any, what an item of work needs: that of the next items
    is on its way while one is computed."""

    def __init__(
        self,
        arrays: Sequence[jax.Ref],
        held: Sequence[jax.Ref],
        arrived: Sequence[jax.Ref],
        turn: jax.Ref,
        fold: Fold,
        lines: int,
        table: jax.Ref | None,
    ):
        """`held` and `arrived`, one for each slot, are of the arrays that are `copied`; `turn` holds the next slot."""
        self.arrays, self.arrived, self.turn, self.table = arrays, arrived, turn, table
        self.fold, self.lines = fold, lines
        own, places = copied(fold, len(arrays)), iter(held)
        self.held = [next(places) if mine else x for x, mine in zip(arrays, own, strict=True)]
        self.whole = [
            of
            for of, (along, mine) in enumerate(zip(ALONG, own, strict=False))
            if mine and not (fold.page and along == "columns")
        ]

    def wait(self, n: jax.Array, count: jax.Array, place: Callable[[jax.Array], tuple[Index, Index]]) -> jax.Array:
        """Returns once what item n needs is there, and in which slot; `place(n)` is its batch element and chunk."""

        @pl.when(n == 0)
        def _():
            self.turn[0] = jnp.int32(0)

        slot, ahead = self.turn[0], SLOTS - 1
        self.turn[0] = _later(slot, 1)

        def begin(m: jax.Array, carry: jax.Array) -> jax.Array:
            self._each(*place(m), _later(slot, m - n), lambda copy: copy.start())
            return carry

        jax.lax.fori_loop(jnp.where(n == 0, 0, n + ahead), jnp.minimum(n + SLOTS, count), begin, np.int32(0))
        pl.when(n < count)(lambda: self._each(*place(n), slot, lambda copy: copy.wait()))
        return slot

    def _each(self, b: Index, chunk: Index, slot: Index, run: Callable[[Any], None]) -> None:
        """What to do with the copies of an item."""
        if self.table is not None:
            self._each_page(self.table, b, chunk, slot, run)
        for of in self.whole:
            x = self.arrays[of]
            source = x.at[(entry(b, x.shape[0], self.lines), *_stretch(ALONG[of], chunk, self.fold))]
            run(pltpu.make_async_copy(source, self.held[of].at[slot], self.arrived[of].at[slot]))

    def _each_page(self, table: jax.Ref, b: Index, chunk: Index, slot: Index, run: Callable[[Any], None]) -> None:
        """What to do with those of its pages of which something is seen."""
        per, rows = self.fold.chunk // self.fold.page, self.fold.page * self.fold.g
        first = (b * self.fold.chunks + chunk) * per

        def one(p: jax.Array, carry: jax.Array) -> jax.Array:
            page = table[first + p]

            @pl.when(page >= 0)
            def _():
                for of in (1, 2):
                    there = self.held[of].at[slot, pl.ds(pl.multiple_of(p * rows, rows), rows)]
                    run(pltpu.make_async_copy(self.arrays[of].at[page], there, self.arrived[of].at[slot]))

            return carry

        jax.lax.fori_loop(np.int32(0), np.int32(per), one, np.int32(0), unroll=math.gcd(per, _UNROLLED))


def copied(fold: Fold, n: int) -> list[bool]:
    """Which of queries, keys, values and scales, n in all, the kernel copies.  Of a last chunk that is not whole
    Pallas knows how to copy no more than there is."""
    return [not along or fold.whole or (fold.page > 0 and along == "columns") for along in ALONG[:n]]


def part(x: jax.Array, along: str, fold: Fold) -> tuple[int, ...]:
    """The shape of what an item needs of an array."""
    return {"": x.shape[1:], "columns": (fold.columns, x.shape[-1]), "keys": (fold.g, fold.chunk)}[along]


def _stretch(along: str, chunk: Index, fold: Fold) -> tuple[Any, ...]:
    """Where in its entry that stands."""
    of = lambda size: pl.ds(pl.multiple_of(chunk * size, size), size)
    return {"": (), "columns": (of(fold.columns),), "keys": (slice(None), of(fold.chunk))}[along]


def _later(slot: jax.Array, by: Index) -> jax.Array:
    """The slot after so many others; to divide takes longer."""
    slot = slot + by
    return jnp.where(slot >= SLOTS, slot - SLOTS, slot)


def stored(ref: Any, slot: Index, at: int, size: int, dtype: jnp.dtype) -> jax.Array:  # type checkers know no bitcast
    """Some rows of keys or values, as a product takes them beside numbers in `dtype`.

    Rows of 8 bits lie in memory in tiles of 8, of which a load fills a quarter of a register; as words of four rows
    each they fill it.  Integers go into a product with bfloat16 as they are, and the compiler casts them there, in
    half as many instructions as a cast before it takes.
    """
    if ref.dtype != jnp.int8:
        return ref[slot, at : at + size, :].astype(working(ref.dtype, dtype))
    words = ref.bitcast(jnp.int32)[slot, at // 4 : (at + size) // 4, :]
    rows = pltpu.bitcast(words, ref.dtype)
    return rows if dtype == jnp.bfloat16 else rows.astype(dtype)


def working(own: jnp.dtype, query: jnp.dtype) -> jnp.dtype:
    """In which dtype stored numbers are multiplied."""
    return query if own.itemsize == 1 else own
