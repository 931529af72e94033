"""Keys and values in fast memory: pages that are copied there one by one, and numbers of 8 bits."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jattn_kernels.tiles.place import Index
from jattn_kernels.tpu.decode.fold import Fold

_UNROLLED = 64  # pages whose copies begin in one go: a loop takes longer than a small page does to arrive


class Pages:
    """Keys that lie in pages of main memory: those of the next chunk are on their way while this one is computed."""

    def __init__(
        self,
        table: jax.Ref,
        pools: tuple[jax.Ref, jax.Ref],
        chunks: tuple[jax.Ref, jax.Ref],
        arrived: jax.Ref,
        fold: Fold,
    ):
        self.table, self.pools, self.chunks, self.arrived, self.fold = table, pools, chunks, arrived, fold

    def arrived_at(self, n: jax.Array, count: jax.Array, place: Any) -> None:
        """Returns once keys and values of item n are there; `place(n)` is its batch element and chunk."""
        begin = lambda n: self._each_page(n, place, lambda copy: copy.start())
        pl.when(n == 0)(functools.partial(begin, n))
        pl.when(n + 1 < count)(functools.partial(begin, n + 1))
        pl.when(n < count)(functools.partial(self._each_page, n, place, lambda copy: copy.wait()))

    def _each_page(self, n: jax.Array, place: Any, run: Any) -> None:
        """What to do with the copies of item n, of the pages of which something is seen."""
        (b, chunk), slot = place(n), jax.lax.rem(n, jnp.int32(2))
        per, rows = self.fold.chunk // self.fold.page, self.fold.page * self.fold.g
        first = (b * self.fold.chunks + chunk) * per

        def one(p: jax.Array, carry: jax.Array) -> jax.Array:
            page = self.table[first + p]

            @pl.when(page >= 0)
            def _():
                for of, (pool, held) in enumerate(zip(self.pools, self.chunks, strict=True)):
                    there = held.at[slot, pl.ds(pl.multiple_of(p * rows, rows), rows)]
                    run(pltpu.make_async_copy(pool.at[page], there, self.arrived.at[slot, of]))

            return carry

        jax.lax.fori_loop(np.int32(0), np.int32(per), one, np.int32(0), unroll=math.gcd(per, _UNROLLED))


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
