"""Shapes of a call whose heads are folded: how many keys a chunk and a product have, and the order of rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jattn_kernels.tiles.place import Index
from jattn_kernels.tpu.sizes import LANES

ROWS = 16  # a tile of 16-bit numbers has so many: queries are filled up to whole tiles
STEP = 2048  # columns of one product, about


class Fold(NamedTuple):
    """Lengths of a call whose heads are folded, how many keys are in fast memory at once, and how many columns one
    product has."""

    t: int
    s: int
    h: int
    g: int
    chunk: int
    step: int
    page: int = 0  # keys of a page, where keys lie in pages
    turned: bool = False
    """Whether rows are `t (h / g) g` and not `t g (h / g)`: where rows of all key heads follow each other, numbers of
    key heads that lie along rows are their factors as they are."""

    @property
    def rows(self) -> int:
        """How many rows the queries of all heads have, in whole tiles."""
        return -(-self.t * self.h // ROWS) * ROWS

    @property
    def runs(self) -> Iterator[tuple[int, int, int]]:
        """Where g rows one after the other come from, where rows are turned: their first row, the first row in the
        call's order, and how far apart they are there."""
        of_head = self.h // self.g
        for i in range(self.t):
            for place in range(of_head):
                yield i * self.h + place * self.g, i * self.h + place, of_head

    def key_head(self, head: jax.Array) -> jax.Array:
        """The key head of a row, from what its number leaves of h."""
        return divided(head, self.g)[1] if self.turned else divided(head, self.h // self.g)[0]

    @property
    def columns(self) -> int:
        """How many columns the keys of a chunk have, one for each key head."""
        return self.chunk * self.g

    @property
    def chunks(self) -> int:
        return -(-self.s // self.chunk)

    @property
    def whole(self) -> bool:
        """Whether the last chunk has as many keys as the others."""
        return self.s % self.chunk == 0

    @property
    def padded(self) -> dict[str, int]:
        """Lengths that chunks divide."""
        return {"t": self.t, "s": self.chunks * self.chunk}


def fold_of(
    t: int, s: int, h: int, g: int, most: int, spread: bool, scaled: bool, page: int = 0, step: int = STEP
) -> Fold:
    """How heads fold where a chunk is to have at most `most` keys: it has all of them, or a number times a power of two
    with which columns are whole lanes.  A product has about `step` columns.  `spread`: operands have numbers of keys,
    which are spread over columns, of whole lanes of keys at a time; so have keys and values that are `scaled`."""
    spread = spread or scaled
    unit = math.lcm(LANES if spread else LANES // math.gcd(LANES, g), max(page, 1))
    chunk = unit * min(2 ** max(0, (most // unit).bit_length() - 1), -(-s // unit))
    least = LANES * g if spread else LANES
    columns = least * math.gcd(chunk * g // least, max(1, step // least))
    return Fold(t, s, h, g, chunk, columns, page, scaled and 1 < g < h)


def entry(b: Index, batch: int, lines: int | None = None) -> Index:
    """Which of `batch` entries batch element b uses, of `lines` if that is known."""
    return 0 if batch == 1 else b if batch == lines else jax.lax.rem(b, jnp.int32(batch))


def divided(x: jax.Array, n: int) -> tuple[Any, Any]:
    """x // n and x % n of vectors of numbers below 2^20."""
    if n & (n - 1) == 0:
        return x >> (n.bit_length() - 1), x & (n - 1)
    quotient = ((x.astype(jnp.float32) + 0.5) * (1 / n)).astype(jnp.int32)  # the unit has no division
    return quotient, x - quotient * n
