"""Tile sizes of the GPU kernels."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp

_COPIED = 128  # bytes, of which what it copies to shared memory begins at a multiple
STORED = 4  # tiles of 8 bits in shared memory: as many bytes are on their way as memory takes to answer
WIDENED = 32  # rows of such a tile that a warpgroup widens at once
EIGHT = 8  # rows of a swizzled tile of shared memory that stand together


@dataclasses.dataclass(frozen=True)
class TileSizes:
    """The tile of one kernel.

    Attributes:
      rows: rows of a block's tile: queries, or keys where their gradients are computed.  Its two warpgroups have half
        of them each, or both of them all; forward and on Blackwell there may be one warpgroup alone, and on Ampere
        there is.
      columns: columns of a tile, which go by.
      steps: tiles of the other side in shared memory at once; with 1 copies and products take turns.
      piece: columns that terms are evaluated for at once: fewer need fewer registers.
      height: rows of a warpgroup's tile, which the machine forces: 64 on Ampere and Hopper, 128 on Blackwell.
    """

    rows: int = 128
    columns: int = 128
    steps: int = 2
    piece: int = 128
    height: int = 64

    def __post_init__(self) -> None:
        if self.rows not in (self.height, 2 * self.height):
            raise ValueError(f"rows must be those of one warpgroup's tile or of two, got {self}")
        if self.columns not in (16, 32, 64, 128) or self.columns % self.piece or self.piece % 16 or self.steps < 1:
            raise ValueError(
                "columns must be 16, 32, 64 or 128, piece a multiple of 16 that divides them, steps at least 1, got"
                f" {self}"
            )

    def keys(self, rows: str) -> int:
        """Keys of a tile whose rows are queries, `t`, or keys, `s`."""
        return self.columns if rows == "t" else self.rows


def stored_as(dtype: jnp.dtype, pairs: bool) -> jnp.dtype:
    """The dtype in which a kernel holds numbers: those of `pairs`, a query and a key, are many."""
    if jnp.issubdtype(dtype, jnp.floating):
        return dtype if pairs else jnp.dtype(jnp.float32)
    if dtype == jnp.uint32:
        return dtype
    return jnp.dtype(jnp.bfloat16 if dtype == jnp.bool_ and pairs else jnp.int32)


def apart(n: int, dtype: jnp.dtype) -> int:
    """How long a stretch of shared memory is that holds n numbers, where several lie behind one another: the
    accelerator of copies brings each to a multiple of 128 bytes."""
    numbers = _COPIED // jnp.dtype(dtype).itemsize
    return -(-n // numbers) * numbers


def by_eights(n: int) -> int:
    """The length of an axis of queries or keys that the accelerator of copies takes: its tiles are of eight rows, as
    they lie in shared memory, and arrays consist of such, or have no more rows than one."""
    return -(-n // EIGHT) * EIGHT if n > EIGHT else n


class Lengths(NamedTuple):
    """Queries and keys of a call."""

    t: int
    s: int

    @property
    def padded(self) -> dict[str, int]:
        """Lengths that the tiles of all kernels divide."""
        return {axis: -(-n // 256) * 256 for axis, n in (("t", self.t), ("s", self.s))}
