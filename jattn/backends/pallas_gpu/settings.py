"""What a caller may set of the GPU backend."""

from __future__ import annotations

import dataclasses

from jattn_kernels.gpu.sizes import TileSizes


@dataclasses.dataclass(frozen=True)
class Settings:
    """Tile sizes of each kernel; None where the backend chooses them, as `attention` does by itself."""

    forward: TileSizes | None = None
    """Tile sizes of the forward kernel."""
    queries: TileSizes | None = None
    """Tile sizes of the kernel of gradients along queries."""
    keys: TileSizes | None = None
    """Tile sizes of the kernel of gradients along keys."""
    pairs: TileSizes | None = None
    """Tile sizes of the kernel of gradients of operands that have both axes, or lie along diagonals."""
