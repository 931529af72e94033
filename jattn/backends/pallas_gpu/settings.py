"""What a caller may set of the GPU backend."""

from __future__ import annotations

import dataclasses

from jattn_kernels.gpu.sizes import TileSizes


@dataclasses.dataclass(frozen=True)
class Settings:
    """The defaults are what `attention` takes by itself."""

    forward: TileSizes | None = None
    """Tile sizes of forward passes."""
    queries: TileSizes | None = None
    """Of the gradients along queries."""
    keys: TileSizes | None = None
    """Of the gradients along keys."""
    pairs: TileSizes | None = None
    """Of the gradients of operands that have both axes, or lie along diagonals."""
