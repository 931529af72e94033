"""Tile sizes of the GPU kernels."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The tile of one kernel.

    Attributes:
      rows: rows of a block's tile: queries, or keys where their gradients are computed.  64 for each of its two
        warpgroups, or 64 for both where sums are so wide that one has that of dk and the other that of dv.
      columns: columns of a tile, which go by.
      steps: tiles of the other side in shared memory at once.
      piece: columns that terms are evaluated for at once: fewer need fewer registers.
    """

    rows: int = 128
    columns: int = 128
    steps: int = 2
    piece: int = 128

    def __post_init__(self) -> None:
        if self.rows not in (64, 128):
            raise ValueError(f"rows must be 128, 64 for each of two warpgroups, or 64 that they share, got {self}")
        if self.columns not in (32, 64, 128) or self.columns % self.piece or self.piece % 16 or self.steps < 2:
            raise ValueError(
                f"columns must be 32, 64 or 128, piece a multiple of 16 that divides them, steps at least 2, got {self}"
            )

    @property
    def height(self) -> int:
        """Rows of a warpgroup's tile."""
        return 64

    def keys(self, rows: str) -> int:
        """Keys of a tile whose rows are queries, `t`, or keys, `s`."""
        return self.columns if rows == "t" else self.rows


class Lengths(NamedTuple):
    """Queries and keys of a call."""

    t: int
    s: int

    @property
    def padded(self) -> dict[str, int]:
        """Lengths that the tiles of all kernels divide."""
        return {axis: -(-n // 128) * 128 for axis, n in (("t", self.t), ("s", self.s))}
