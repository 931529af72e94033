"""Dilation: every so many keys."""

from __future__ import annotations

import jax

from jattn._terms import is_whole, positions, term
from jattn._terms.block_tables import Answer, Range
from jattn.masks._mask import Mask


@term
class Dilated(Mask):
    """Every stride-th key, counted from the query."""

    stride: int

    def __call__(self, i: jax.Array, j: jax.Array) -> jax.Array:
        return (i - j) % self.stride == 0

    def blocks(self, i: Range, j: Range) -> Answer:
        lo, hi = i.lo - j.hi, i.hi - j.lo
        return Answer(hi // self.stride * self.stride >= lo, (lo == hi) & (lo % self.stride == 0) | (self.stride == 1))


def dilated(stride: int) -> Mask:
    """(i - j) % stride == 0: every stride-th key, counted from the query.

    Args:
      stride: an int >= 1.

    Raises:
      ValueError: it is not.

    >>> import numpy as np, jattn
    >>> print(jattn.masks.dilated(2)(np.arange(3)[:, None], np.arange(3)[None]).astype(int))
    [[1 0 1]
     [0 1 0]
     [1 0 1]]

    Source: Child et al. 2019, section 4 (the strided pattern); Beltagy et al. 2020, section 3.1.
    """
    if not is_whole(stride) or stride < 1:
        raise ValueError(f"stride must be an int >= 1, got {stride!r}")
    return Dilated(min(int(stride), positions.FAR))
