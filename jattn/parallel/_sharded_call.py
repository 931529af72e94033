"""What is static about a call whose sequence lies over devices."""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

from jax.sharding import PartitionSpec

from jattn._call import targets
from jattn.backends.contract import Backend

Strategy = Literal["ring", "all_to_all", "gather"]


@dataclasses.dataclass(frozen=True)
class MeshAxes:
    """Along which axes of a mesh a call lies, and over how many devices."""

    batch: str | None
    head: str | None
    sequence: str
    sizes: tuple[tuple[str, int], ...]
    """Each axis of the mesh with how many devices lie along it."""

    def count(self, axis: str | None) -> int:
        return 1 if axis is None else dict(self.sizes)[axis]

    @property
    def devices(self) -> int:
        return self.count(self.sequence)

    def spec(self, axes: str, ndim: int, head: bool = True) -> PartitionSpec:
        """Where an array with such axes lies; with both t and s it has all of s."""
        of = {"b": self.batch, "h": self.head if head else None, "t": self.sequence, "s": self.sequence}
        if "t" in axes:
            of["s"] = None
        return PartitionSpec(*(of[a] for a in axes), *[None] * (ndim - len(axes)))


class ShardedCall(NamedTuple):
    """What is static about a call whose sequence lies over devices."""

    axes: MeshAxes
    strategy: Strategy
    zigzag: bool
    backend: str | Backend | None
    blocks: tuple[int, int] | None
    return_lse: bool
    target: targets.Target
