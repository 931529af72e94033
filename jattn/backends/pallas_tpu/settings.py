"""What a caller may set of the TPU backend."""

from __future__ import annotations

import dataclasses

from jattn_kernels.tpu.sizes import TileSizes


@dataclasses.dataclass(frozen=True)
class Settings:
    """The defaults are what `attention` takes by itself."""

    forward: TileSizes | None = None
    """Tile sizes of forward passes, in the place of the tuned ones."""
    backward: TileSizes | None = None
    """Tile sizes of backward passes, in the place of the tuned ones."""
    lists: bool = True
    """Whether tiles may be listed in scalar memory, where they fit; else their runs are."""
