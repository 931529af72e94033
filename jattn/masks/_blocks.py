"""Block-sparse masks of a static layout."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jattn._terms import FieldValue, Operand, indices, is_whole, plain, term
from jattn._terms.block_tables import Answer, Range
from jattn.masks._dense import Dense
from jattn.masks._mask import Mask


@dataclasses.dataclass(frozen=True)
class _BlockLayout:
    """A static boolean array with value equality, so that it can be part of a compiled program's key."""

    shape: tuple[int, ...]
    bits: bytes

    @property
    def array(self) -> np.ndarray:
        return np.frombuffer(self.bits, bool).reshape(self.shape)


def _layout(array: np.ndarray) -> _BlockLayout:
    return _BlockLayout(array.shape, array.tobytes())


@term
class Blocks(Mask):
    """Blocks of a static layout."""

    layout: _BlockLayout
    block: int
    head: FieldValue  # the operand that says which head this tile is of; None where the layout is the same for all
    picked: bool = False  # the heads are picked out of a larger layout at run time

    def bound(self, b: Operand, h: Operand) -> Blocks:
        del b
        array = self.layout.array
        if array.ndim == 2:
            return self
        if not isinstance(h.array, np.ndarray):
            return dataclasses.replace(self, head=h, picked=True)
        return dataclasses.replace(self, layout=_layout(array[h.array]), head=indices(len(h.array), "h"))

    def __call__(self, i: jax.Array, j: jax.Array) -> jax.Array:
        layout = jnp.asarray(self.layout.array)
        layout = layout if self.head is None else layout[self.head]
        return layout[i // self.block, j // self.block]

    def blocks(self, i: Range, j: Range) -> Answer:
        # a prefix sum along both axes has the sum over any rectangle of layout cells in four entries, whatever its size
        layout = self.layout.array.reshape(-1, *self.layout.shape[-2:])
        sums = np.pad(layout.cumsum(-2).cumsum(-1, dtype=np.int32), ((0, 0), (1, 0), (1, 0)))
        head = self.head.lo if self.picked else np.arange(len(sums)).reshape(-1, 1, 1)
        (r0, r1), (c0, c1) = ((x.lo // self.block, x.hi // self.block + 1) for x in (i, j))
        if not all(isinstance(x, np.ndarray) for x in (head, r0, c0)):  # where they are is known only at run time
            sums = jnp.asarray(sums)
        inside = sums[head, r1, c1] - sums[head, r0, c1] - sums[head, r1, c0] + sums[head, r0, c0]
        return Answer(inside > 0, inside == (r1 - r0) * (c1 - c0))

    def of_pairs(self, i: jax.Array, j: jax.Array) -> Dense:
        """The same for queries at i `[b, t]` and keys at j `[b, s]`, as one boolean for each pair: kernels find bits by
        where a tile stands."""
        seen = jnp.asarray(self.layout.array)[..., i[..., None] // self.block, j[:, None] // self.block]
        return Dense(Operand(seen, "bts") if seen.ndim == 3 else Operand(seen.swapaxes(0, 1), "bhts"))


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
    try:
        array = np.asarray(plain(layout))
    except jax.errors.TracerArrayConversionError:
        raise ValueError(
            "layout must be known while tracing (NumPy, lists), got a traced array: a mask of one is"
            " masks.function(lambda i, j, x: x[i // block, j // block], jattn.operand(layout))"
        ) from None
    except ValueError:
        raise ValueError("layout must be booleans [.., ..] or [h, .., ..], got rows of unequal lengths") from None
    if array.ndim not in (2, 3) or array.dtype != bool:
        raise ValueError(
            f"layout must be a boolean array [.., ..] or [h, .., ..], got {array.dtype}{list(array.shape)}"
        )
    if not is_whole(block) or block < 1:
        raise ValueError(f"block must be an int >= 1, got {block!r}")
    return Blocks(_layout(array), int(block), None)
