"""Block-sparse masks of a static layout."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jattn._terms import FieldValue, Size, indices, term
from jattn._terms.block_tables import Answer, Range
from jattn.masks._mask import Mask


@dataclasses.dataclass(frozen=True)
class _Layout:
    """A static boolean array with value equality, so that it can be part of a compiled program's key."""

    shape: tuple[int, ...]
    bits: bytes

    @property
    def array(self) -> np.ndarray:
        return np.frombuffer(self.bits, bool).reshape(self.shape)


@term
class Blocks(Mask):
    """Blocks of a static layout."""

    layout: _Layout
    block: int
    head: FieldValue  # the operand that says which head this tile is of; None where the layout is the same for all

    def bound(self, b: Size, h: Size) -> Blocks:
        del b
        return self if self.layout.array.ndim == 2 else dataclasses.replace(self, head=indices(h, "h"))

    def __call__(self, i: jax.Array, j: jax.Array) -> jax.Array:
        layout = jnp.asarray(self.layout.array)
        layout = layout if self.head is None else layout[self.head]
        return layout[i // self.block, j // self.block]

    def blocks(self, i: Range, j: Range) -> Answer:
        if not isinstance(i.lo, np.ndarray):  # positions known only at run time
            return super().blocks(i, j)
        # sums over rectangles of layout cells, from a two-dimensional prefix sum
        layout = self.layout.array
        corner = np.zeros((*layout.shape[:-2], layout.shape[-2] + 1, layout.shape[-1] + 1), np.int64)
        corner[..., 1:, 1:] = layout.cumsum(-2).cumsum(-1)
        (r0, r1), (c0, c1) = ((np.asarray(x.lo) // self.block, np.asarray(x.hi) // self.block + 1) for x in (i, j))
        inside = corner[..., r1, c1] - corner[..., r0, c1] - corner[..., r1, c0] + corner[..., r0, c0]
        return Answer(inside > 0, inside == (r1 - r0) * (c1 - c0))


def blocks(layout: ArrayLike, block: int) -> Mask:
    """layout[i // block, j // block]: block-sparse attention.  Blocks that the layout leaves out are never computed.

    Args:
      layout: booleans `[n, m]`, or `[h, n, m]` for a layout of each head, known while tracing (NumPy, lists), with
        n * block >= t and m * block >= s.
      block: how many positions a block has, an int >= 1.

    Raises:
      ValueError: the layout is not boolean, or has other axes; `block` is not such an int.  When `attention` is called:
        the layout does not cover t, s or h.

    >>> import numpy as np, jattn
    >>> mask = jattn.masks.blocks([[True, False], [True, True]], 2)
    >>> print(mask(np.arange(4)[:, None], np.arange(4)[None]).astype(int))
    [[1 1 0 0]
     [1 1 0 0]
     [1 1 1 1]
     [1 1 1 1]]

    Source: Child et al. 2019 (their block-sparse kernels); Zaheer et al. 2020 (random and global blocks).
    """
    array = np.asarray(layout)
    if array.ndim not in (2, 3) or array.dtype != bool:
        raise ValueError(
            f"layout must be a boolean array [.., ..] or [h, .., ..], got {array.dtype}{list(array.shape)}"
        )
    if not isinstance(block, (int, np.integer)) or block < 1:
        raise ValueError(f"block must be an int >= 1, got {block!r}")
    return Blocks(_Layout(array.shape, array.tobytes()), int(block), None)
