"""Tile sizes are checked where they are made."""

from __future__ import annotations

import pytest
from jattn_kernels.tpu.sizes import TileSizes


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="multiples of 128"):
        TileSizes(100, 128, 128, 128)
    with pytest.raises(ValueError, match="step must divide key"):
        TileSizes(128, 384, 256, 384)
