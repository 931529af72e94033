"""Boolean arrays as masks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike

from jattn._terms import FieldValue, as_array, term
from jattn._terms.block_tables import Answer, Range
from jattn.masks._mask import Mask


@term
class Dense(Mask):
    """A boolean array with the axes along which it varies."""

    array: FieldValue

    def __call__(self, i: jax.Array, j: jax.Array) -> jax.Array:
        return self.array | jnp.zeros(jnp.broadcast_shapes(i.shape, j.shape), bool)

    def blocks(self, i: Range, j: Range) -> Answer:
        del i, j
        return Answer(self.array.hi, self.array.lo)


@term
class Unplaced(Mask):
    """A boolean array whose axes are known only beside the query and key: `_call.checks` makes a `Dense` of it."""

    array: FieldValue


def dense(array: ArrayLike) -> Mask:
    """array[b, h, i, j]: any booleans, True = attend.  `attention(mask=array)` is short for it.

    Its blocks are judged by its entries, at run time; memory is that of the array.

    Args:
      array: booleans broadcastable to `[b, h, t, s]`.

    Raises:
      TypeError: the array is not boolean.  ValueError, when `attention` is called: it is not broadcastable.

    >>> import numpy as np, jattn
    >>> q = np.ones((1, 2, 1, 4), "float32")
    >>> jattn.weights(q, q, q, mask=jattn.masks.dense([[True, False], [True, True]]))[0, 0].tolist()
    [[1.0, 0.0], [0.5, 0.5]]
    """
    booleans = as_array(array, "a mask")
    if booleans.dtype != bool:
        raise TypeError(
            f"a mask array must be boolean, got {booleans.dtype}{list(booleans.shape)}: numbers to add to the score go"
            " in bias=, a padding mask [b, s] of ones and zeros is padding.astype(bool)[:, None, None, :] or"
            " jattn.masks.lengths(padding.sum(-1))"
        )
    return Unplaced(booleans)
