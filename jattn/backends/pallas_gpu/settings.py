"""What a caller may set of the GPU backend."""

from __future__ import annotations

import dataclasses

from jattn_kernels.gpu.sizes import Sizes


@dataclasses.dataclass(frozen=True)
class Settings:
    """The defaults are what `attention` takes by itself."""

    forward: Sizes | None = None
    """Tile sizes of forward passes."""
    queries: Sizes | None = None
    """Of the gradients along queries."""
    keys: Sizes | None = None
    """Of the gradients along keys."""
    pairs: Sizes | None = None
    """Of the gradients of operands that have both axes, or lie along diagonals."""
