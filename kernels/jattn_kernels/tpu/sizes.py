"""Tile sizes of the TPU kernels."""

from __future__ import annotations

import dataclasses

from jattn_kernels.tiles.work import Pattern, Stretch, Strip

LANES = 128


@dataclasses.dataclass(frozen=True)
class TileSizes:
    """Tile sizes, and choices between ways to compute the same: what `python -m bench tune tpu` tunes."""

    query: int  # rows of a query tile
    key: int  # keys of a key tile
    step: int  # keys of one product
    chunk: int  # keys held in fast memory at once
    rows: int = 0  # rows of one product of a full tile; 0: all of the tile's
    grain: int = 256  # side of the squares that partial tiles are cut into
    wide: bool = False  # forward: weights meet the values in float32
    newton: bool = False  # forward: reciprocals by two Newton steps from the approximate one
    transposed_dq: bool = False  # backward: the sum for dq stands [d, rows]
    transposed_dkv: bool = False  # backward: the sums for dk and dv stand [d, keys]
    scheduler: bool = False  # the compiler's linear-programming scheduler

    def __post_init__(self) -> None:
        if any(x < LANES or x % LANES for x in (self.query, self.key, self.step, self.chunk, self.height, self.grain)):
            raise ValueError(f"tile sizes must be multiples of {LANES}, got {self}")
        if self.key % self.step or self.chunk % self.key or self.query % self.height:
            raise ValueError(f"step must divide key, key divide chunk and rows divide query, got {self}")

    @property
    def height(self) -> int:
        return self.rows or self.query

    def whole(self, masked: bool, transposed: bool, rows_first: bool = False) -> Pattern:
        """The pattern of a tile that is all full or all masked."""
        rows = range(0, self.query, self.height)
        columns = range(0, self.key, self.step)
        places = [(r, c) for r in rows for c in columns] if rows_first else [(r, c) for c in columns for r in rows]
        if transposed:
            return tuple(Strip(c, self.step, (Stretch(r, self.height, masked),)) for r, c in places)
        return tuple(Strip(r, self.height, (Stretch(c, self.step, masked),)) for r, c in places)

    @property
    def flags(self) -> dict[str, bool] | None:
        return {"XLA_TPU_FORCE_LP_LLO_SCHEDULER": True} if self.scheduler else None
