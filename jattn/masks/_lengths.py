"""Lengths: how many keys and queries there are."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike

from jattn._terms import FieldValue, positions, term
from jattn._terms.block_tables import Answer, Range, ends
from jattn.masks._mask import Mask


@term
class Before(Mask):
    """Key (or query) positions below a bound."""

    limit: FieldValue
    axis: str

    def __call__(self, i: jax.Array, j: jax.Array) -> jax.Array:
        zero = jnp.zeros(jnp.broadcast_shapes(i.shape, j.shape), jnp.int32)
        return (i if self.axis == "t" else j) + zero < self.limit

    def blocks(self, i: Range, j: Range) -> Answer:
        position, (least, greatest) = (i if self.axis == "t" else j), ends(self.limit)
        return Answer(position.lo < greatest, position.hi < least)


def prefix(length: ArrayLike) -> Mask:
    """j < length[b]: every query sees a prefix of the keys.  `prefix(n) | causal()` is the prefix-LM mask.

    Args:
      length: an int, an integer scalar array, or integers `[b]`.

    Raises:
      TypeError: `length` is not an integer, or has more axes.

    >>> import numpy as np, jattn
    >>> mask = jattn.masks.prefix(2) | jattn.masks.causal()
    >>> print(mask(np.arange(3)[:, None], np.arange(3)[None]).astype(int))
    [[1 1 0]
     [1 1 0]
     [1 1 1]]

    Source: Raffel et al. 2020, section 3.2.1.
    """
    return Before(positions.lengths(length, "length"), "s")


def lengths(kv: ArrayLike, q: ArrayLike | None = None) -> Mask:
    """j < kv[b] and, if `q` is given, i < q[b]: padded batches.

    Args:
      kv: how many keys of each batch element are real, integers `[b]`; an int counts for all.
      q: how many queries are, likewise; rows past them see nothing and give 0.  None for all.

    Raises:
      TypeError: lengths are not integers, or have more axes.

    >>> import numpy as np, jattn
    >>> q = np.ones((2, 4, 1, 4), "float32")
    >>> jattn.weights(q, q, q, mask=jattn.masks.lengths([2, 4]))[:, 0, 0].tolist()
    [[0.5, 0.5, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]]
    """
    mask = Before(positions.lengths(kv, "kv"), "s")
    return mask if q is None else mask & Before(positions.lengths(q, "q"), "t")
