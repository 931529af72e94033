"""Which tiles a block visits: lists in global memory, first the full tiles, which never look at the mask.

A line is a tile of rows.  Where every line visits every tile there are no lists; where lists would be long, runs: of
every line the first tile that is visited and the first full one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jattn_kernels.tiles.place import Index


class LineVisits(NamedTuple):
    """The tiles that one line visits."""

    full: Index  # how many are full
    total: Index  # how many are visited
    tile: Callable[[jax.Array], jax.Array]  # n -> the n-th, the full ones first
    some: tuple[bool, bool]  # whether any line has full ones, and partial ones

    def kinds(self) -> list[tuple[bool, Index, Index]]:
        """Whether tiles look at the mask, the first such tile and the one after the last."""
        kinds = [(False, 0, self.full), (True, self.full, self.total)]
        return [x for x, some in zip(kinds, self.some, strict=True) if some]


class LineLists(NamedTuple):
    """How the arrays of a call's lists are to be read.

    `list`: tiles `[batch, heads, lines, longest]`, full `[batch, heads, lines]`, partial alike.  `runs`: the first tile
    that is visited, the first full one, full, partial, each `[batch, heads, lines]`.  `order`: full and partial; line l
    visits tiles from l * `tiles` on.  `all`: none.  All of them int32.
    """

    kind: Literal["all", "list", "runs", "order"]
    batch: int  # entries for batch elements: element b uses entry b % batch
    heads: int  # entries for heads: one for each, or one for all
    tiles: int  # how many tiles a line can visit
    some: tuple[bool, bool] = (True, True)  # whether any line has full tiles, and partial ones

    @property
    def arrays(self) -> int:
        """How many arrays the lists have."""
        return {"all": 0, "list": 3, "runs": 4, "order": 2}[self.kind]

    def visits(self, refs: Sequence[jax.Ref], b: Index, h: Index, line: Index) -> LineVisits:
        """The tiles that a line of head h of batch element b visits."""
        if self.kind == "all":
            return LineVisits(jnp.int32(self.tiles), jnp.int32(self.tiles), lambda n: n, (True, False))
        at = (b % self.batch if self.batch > 1 else 0, h if self.heads > 1 else 0, line)
        if self.kind == "list":
            tiles, full, partial = refs
            return LineVisits(full[at], full[at] + partial[at], lambda n: tiles[(*at, n)], self.some)
        if self.kind == "order":
            full, partial = (x[at] for x in refs)
            return LineVisits(full, full + partial, lambda n: line * self.tiles + n, self.some)
        visited, first, full, partial = (x[at] for x in refs)

        def tile(n: jax.Array) -> jax.Array:
            of_partial = visited + n - full
            of_partial = jnp.where(of_partial >= first, of_partial + full, of_partial)
            return jnp.where(n < full, first + n, of_partial)

        return LineVisits(full, full + partial, tile, self.some)
