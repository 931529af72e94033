"""What a kernel does where: tile sizes, the list of tiles that each query tile visits, and the steps inside a tile.

Query tile i visits a list of key tiles: first the full ones, which never look at the mask, then the partial ones.  A
partial tile is worked off as a static list of steps, its pattern: in a causal tile on the diagonal each strip of rows
sees the keys before it whole and a square that needs the mask; what no row sees is in no step.

Keys stand in fast memory a chunk at a time.  The lists are scalars that the kernel reads ahead of its grid.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

LANES = 128


class Piece(NamedTuple):
    """A stretch of the other axis that a strip meets."""

    at: int
    size: int
    masked: bool


class Step(NamedTuple):
    """A strip of a tile and what it meets in one go: rows and their keys, or (backward) keys and their rows."""

    at: int
    size: int
    pieces: tuple[Piece, ...]


Pattern = tuple[Step, ...]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Tile sizes, and choices between ways to compute the same: what `python -m bench tune tpu` tunes."""

    query: int  # rows of a query tile
    key: int  # keys of a key tile
    step: int  # keys of one product
    chunk: int  # keys held in fast memory at once
    rows: int = 0  # rows of one product of a full tile; 0: all of the tile's
    grain: int = 256  # side of the squares that partial tiles are cut into
    wide: bool = False  # forward: weights meet the values in float32
    newton: bool = False  # forward: reciprocals by two Newton steps from the approximate one
    turned_dq: bool = False  # backward: the sum for dq stands [d, rows]
    turned_dkv: bool = False  # backward: the sums for dk and dv stand [d, keys]
    scheduler: bool = False  # the compiler's linear-programming scheduler

    def __post_init__(self):
        if any(x < LANES or x % LANES for x in (self.query, self.key, self.step, self.chunk, self.height, self.grain)):
            raise ValueError(f"tile sizes must be multiples of {LANES}, got {self}")
        if self.key % self.step or self.chunk % self.key or self.query % self.height:
            raise ValueError(f"step must divide key, key divide chunk and rows divide query, got {self}")

    @property
    def height(self) -> int:
        return self.rows or self.query

    def whole(self, masked: bool, upright: bool, rows_first: bool = False) -> Pattern:
        """The pattern of a tile that is all full or all masked."""
        rows = range(0, self.query, self.height)
        columns = range(0, self.key, self.step)
        places = [(r, c) for r in rows for c in columns] if rows_first else [(r, c) for c in columns for r in rows]
        if upright:
            return tuple(Step(r, self.height, (Piece(c, self.step, masked),)) for r, c in places)
        return tuple(Step(c, self.step, (Piece(r, self.height, masked),)) for r, c in places)

    @property
    def flags(self) -> dict[str, bool] | None:
        return {"XLA_TPU_FORCE_LP_LLO_SCHEDULER": True} if self.scheduler else None


class Work(NamedTuple):
    """Scalars that say which tiles are visited.  `n` counts the rows of the mask's batch elements times its heads."""

    tiles: Any  # [n, query tiles, key tiles] int32: key tile + 2^16 * pattern, chunk by chunk, the full ones first
    counts: Any  # [n, query tiles, chunks, 3] int32: where a chunk's list begins, its full tiles, its partial tiles
    chunks: Any  # [n, query tiles, chunks] int32: which chunk is in fast memory at each step of the grid
    batch: int  # entries for batch elements: element b uses entry b % batch
    heads: int  # entries for heads: one for each, or one for all
    patterns: tuple[Pattern, ...]

    @property
    def scalars(self) -> tuple[Any, Any, Any]:
        """Flat: scalar memory pads the last axis of an array."""
        return self.tiles.reshape(-1), self.counts.reshape(-1), self.chunks.reshape(-1)

    @property
    def shape(self) -> WorkShape:
        _, nq, nk = self.tiles.shape
        alike = None
        if isinstance(self.counts, np.ndarray) and (self.counts == self.counts[:1, :1, :1]).all():
            alike = tuple(int(x) for x in self.counts[0, 0, 0, 1:])
        return WorkShape(self.batch, self.heads, nq, nk, self.chunks.shape[-1], alike)


class WorkShape(NamedTuple):
    """The static part of `Work`, and how its scalars are found."""

    batch: int
    heads: int
    query_tiles: int
    key_tiles: int
    chunks: int  # steps over chunks
    alike: tuple[int, ...] | None  # how many full and partial tiles there are, where that is the same everywhere

    def line(self, b: Any, h: Any, i: Any) -> Any:
        """The number of query tile i of head h of batch element b."""
        return ((b % self.batch) * self.heads + (h if self.heads > 1 else 0)) * self.query_tiles + i

    def chunk(self, chunks: Any, b: Any, h: Any, i: Any, c: Any) -> Any:
        """Which chunk is there at step c."""
        return chunks[self.line(b, h, i) * self.chunks + c]

    def span(self, counts: Any, b: Any, h: Any, i: Any, c: Any) -> tuple[Any, Any, Any]:
        """Where the step's list begins in `tiles`, its full tiles and its partial tiles."""
        line = self.line(b, h, i)
        begin, full, partial = (counts[(line * self.chunks + c) * 3 + n] for n in range(3))
        full, partial = self.alike or (full, partial)
        return line * self.key_tiles + begin, full, partial


def tile_and_pattern(entry: Any) -> tuple[Any, Any]:
    return entry & 0xFFFF, entry >> 16


def visits(some: Any, every: Any, pattern: Any, sizes: Sizes, compact: bool, xp: Any = jnp) -> tuple[Any, Any, Any]:
    """`Work`'s arrays from answers for tiles, `[n, query tiles, key tiles]`, in NumPy or jnp (`xp`).

    `compact`: chunks that a query tile does not use are left out of its steps; else step c is chunk c.
    """
    nk = some.shape[-1]
    per = sizes.chunk // sizes.key
    nc = -(-nk // per)
    full, partial = some & every, some & ~every
    chunk = xp.arange(nk) // per
    order = xp.argsort(xp.where(some, 2 * chunk + partial, 2 * nc), axis=-1, stable=True)
    tiles = order + (xp.take_along_axis(xp.broadcast_to(pattern, some.shape), order, -1) << 16)
    full, partial = (
        xp.stack([x[..., c * per : (c + 1) * per].sum(-1) for c in range(nc)], -1) for x in (full, partial)
    )
    begin = xp.cumsum(full + partial, axis=-1) - full - partial
    used = full + partial > 0 if compact else xp.ones_like(full, bool)
    live = xp.arange(nc) < used.sum(-1, keepdims=True)
    # the chunks in use come first, then the last of them again: what stands in fast memory stays there
    step = xp.minimum(xp.arange(nc), xp.maximum(used.sum(-1, keepdims=True) - 1, 0))
    chunks = xp.take_along_axis(xp.argsort(~used, axis=-1, stable=True), step, axis=-1)
    counts = xp.stack([xp.where(live, xp.take_along_axis(x, chunks, -1), 0) for x in (begin, full, partial)], -1)
    if compact and isinstance(used, np.ndarray):  # the grid is only as long as the work
        most = max(int(used.sum(-1).max()), 1)
        chunks, counts = chunks[..., :most], counts[..., :most, :]
    return tiles.astype(xp.int32), counts.astype(xp.int32), chunks.astype(xp.int32)
