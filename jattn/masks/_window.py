"""Windows: the keys between two sides, seen from the query or from a centre of its own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jattn._terms import FieldValue, Operand, plain, positions, term, wide
from jattn._terms.block_tables import Answer, Range, ends
from jattn._terms.operand import as_array
from jattn.masks._mask import Mask


@term
class Window(Mask):
    """-left <= j - i <= right; None leaves a side open."""

    left: FieldValue
    right: FieldValue

    def __call__(self, i: jax.Array, j: jax.Array) -> jax.Array:
        inside: jax.Array | bool = True
        if self.left is not None:
            inside = j >= positions.shifted(i, -self.left)
        if self.right is not None:
            inside = (j <= positions.shifted(i, self.right)) & inside
        return inside | jnp.zeros(jnp.broadcast_shapes(i.shape, j.shape), bool)

    def blocks(self, i: Range, j: Range) -> Answer:
        answer = Answer(np.array(True), np.array(True))
        if self.left is not None:
            least, greatest = ends(self.left)
            first, last = positions.shifted(i.lo, -greatest), positions.shifted(i.hi, -least)
            answer &= Answer(j.hi >= first, j.lo >= last)
        if self.right is not None:
            least, greatest = ends(self.right)
            first, last = positions.shifted(i.lo, least), positions.shifted(i.hi, greatest)
            answer &= Answer(j.lo <= last, j.hi <= first)
        return answer


def causal(offset: ArrayLike = 0) -> Mask:
    """j <= i + offset: a query sees the keys up to its own position (top-left aligned, as in jax.nn).

    For queries that are the last t of s positions, offset = s - t.

    Args:
      offset: an int, or an integer scalar array where it is known only at run time (a decoding step).  An int is part
        of the compiled program, which skips blocks by it, so another one compiles anew: where it changes with every
        call, give `jnp.int32(offset)`.

    Raises:
      TypeError, ValueError: `offset` is not an integer, or an array with axes.

    >>> import numpy as np, jattn
    >>> print(jattn.masks.causal()(np.arange(3)[:, None], np.arange(3)[None]).astype(int))
    [[1 0 0]
     [1 1 0]
     [1 1 1]]

    Source: Vaswani et al. 2017, section 3.2.3.
    """
    if offset is None:
        raise TypeError("offset must be an integer, got None, which leaves no side: write mask=None to hide nothing")
    return Window(None, _side(offset, "offset"))


def window(left: ArrayLike | None, right: ArrayLike | None = 0) -> Mask:
    """i - left <= j <= i + right: sliding-window (local) attention.

    Args:
      left: how many keys before its own position a query sees: an int, or an integer scalar array known at run time;
        None, and what reaches past the greatest position 2^31 - 1, leaves the side open.
      right: how many after it, likewise.

    Raises:
      ValueError: left + right < 0, which leaves no key; or an array has axes.
      TypeError: a side is not an integer.

    >>> import numpy as np, jattn
    >>> print(jattn.masks.window(1)(np.arange(3)[:, None], np.arange(3)[None]).astype(int))
    [[1 0 0]
     [1 1 0]
     [0 1 1]]

    Source: Beltagy et al. 2020, section 3.1.
    """
    left, right = plain(left), plain(right)
    if isinstance(left, (int, np.integer)) and isinstance(right, (int, np.integer)) and int(left) + int(right) < 0:
        raise ValueError(f"a window must leave a key: left + right must be >= 0, got left {left}, right {right}")
    return Window(_side(left, "left"), _side(right, "right"))


def _side(value: ArrayLike | None, name: str) -> int | Operand | None:
    """A side of a window: an int, an operand, or None where it is open."""
    side = None if value is None else positions.integer(value, name)
    return None if isinstance(side, int) and side >= positions.FAR else side


@term
class Around(Mask):
    """A window around the query's centre in the place of its own position."""

    center: FieldValue
    window: Mask

    def __call__(self, i: jax.Array, j: jax.Array) -> jax.Array:
        del i
        return self.window(self.center, j)

    def blocks(self, i: Range, j: Range) -> Answer:
        del i
        return self.window.blocks(self.center, j)


def around(center: ArrayLike, left: ArrayLike | None, right: ArrayLike | None) -> Mask:
    """center[i] - left <= j <= center[i] + right: a window around centres known at run time.

    Blocks that no centre of a block of queries comes near are skipped.  A mask passes no gradient: that of the centre
    comes through a gate, `gates.gaussian(center, sigma)`.

    Args:
      center: `[t]`, `[b, t]` or `[b, h, t]`, integers or floating-point numbers, in positions of the keys.
      left: how many positions before the centre a query sees, as in `window`.
      right: how many after it.

    Raises:
      ValueError: `center` has other axes or is boolean; the sides are those of an empty window.
      TypeError: a side is not an integer.

    >>> import numpy as np, jattn
    >>> mask = jattn.masks.around(np.array([0.5, 3.0]), 1, 1)  # query 0 sees keys 0 and 1; query 1 sees 2, 3 and 4
    >>> q, k = np.ones((1, 2, 1, 4), "float32"), np.ones((1, 5, 1, 4), "float32")
    >>> (jattn.weights(q, k, k, mask=mask)[0, 0] > 0).astype(int).tolist()
    [[1, 1, 0, 0, 0], [0, 0, 1, 1, 1]]

    Source: Luong et al. 2015, section 3.2 ("local-p").
    """
    centers = center if isinstance(center, (np.ndarray, jax.Array)) else jnp.asarray(as_array(center, "center"))
    if centers.ndim not in (1, 2, 3) or centers.dtype == bool:
        raise ValueError(f"center must be numbers [t], [b, t] or [b, h, t], got {centers.dtype}{list(centers.shape)}")
    # centres are held as wide as pairs compare them: rounded otherwise, blocks would be judged by other numbers
    whole = jnp.issubdtype(centers.dtype, jnp.integer)
    held = jax.lax.stop_gradient(jnp.asarray(positions.int32(centers)) if whole else wide(centers))
    return Around(Operand(held, ("t", "bt", "bht")[centers.ndim - 1]), window(left, right))
