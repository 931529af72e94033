"""Masks that a user writes as a function."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jattn._terms import AnyArray, Operand, term
from jattn._terms.block_tables import Answer, Range
from jattn._terms.of_user import OfUser
from jattn._terms.untraced import untraced
from jattn.masks._mask import Mask


@term
class Function(OfUser, Mask):
    """A user's function."""

    heads: tuple[int, ...] | None = None
    """Which heads the call has, where they are known and all that it is told."""

    def bound(self, b: Operand, h: Operand) -> Function:
        known = self.told == "h" and isinstance(h.array, np.ndarray)
        return dataclasses.replace(super().bound(b, h), heads=tuple(h.array.tolist()) if known else None)

    def __call__(self, i: jax.Array, j: jax.Array) -> jax.Array:
        attends = self.result(i=i, j=j)
        if attends.dtype != bool:
            raise TypeError(f"masks.function: {self.closure.name} returns {attends.dtype}, must return bool")
        return attends | jnp.zeros(jnp.broadcast_shapes(i.shape, j.shape), bool)

    def blocks(self, i: Range, j: Range) -> Answer:
        unknown = self.operands or self.held or (self.told and self.heads is None)
        if unknown or not isinstance(i.lo, np.ndarray):
            return super().blocks(i, j)
        rows, columns = (_every(lo, hi) for lo, hi in ((i.lo[:, 0], i.hi[:, 0]), (j.lo[0], j.hi[0])))
        heads = self.heads or (None,)
        if len(heads) * rows.size * columns.size > _MOST_PAIRS:
            return super().blocks(i, j)
        some, every = untraced(lambda: tuple(zip(*(self._look(x, rows, columns) for x in heads), strict=True)))
        return Answer(np.array(some), np.array(every)) if self.heads else Answer(some[0], every[0])

    def _look(self, head: int | None, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whether some pair and whether every pair of each block attends, of blocks of positions."""
        of_head = dataclasses.replace(self, h=None if head is None else jnp.int32(head))

        def strip(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
            pairs = of_head(rows[:, None], jnp.asarray(columns.reshape(1, -1)))
            over = lambda reduce: reduce(reduce(pairs, axis=0).reshape(columns.shape), axis=1)
            return over(jnp.any), over(jnp.all)

        if rows.size * columns.size > _EAGER_PAIRS:
            some, every = jax.jit(lambda rows: jax.lax.map(strip, rows))(rows)
        else:
            some, every = zip(*map(strip, rows), strict=True)
        return np.array(some), np.array(every)


def _every(lo: AnyArray, hi: AnyArray) -> np.ndarray:
    """Every position of every block, `[blocks, size]` int32; shorter blocks repeat their last."""
    size = int((hi - lo).max()) + 1
    return np.minimum(lo[:, None] + np.arange(size), hi[:, None]).astype(np.int32)


_MOST_PAIRS = 2**30  # a static function is looked at pair by pair while tracing: beyond about a second, not worth it
_EAGER_PAIRS = 2**22  # compiled, it looks ten times faster, but compiling takes longer than to look at so few


def function(fn: Callable[..., ArrayLike], *operands: ArrayLike | Operand) -> Mask:
    """fn(i, j, *operands), or fn(b, h, i, j, *operands): any mask that you can write.

    Without operands, and without use of b, it is static: evaluated once per block while tracing, for each head if it
    asks which, so that empty blocks are skipped.  It may close over arrays: NumPy arrays of up to 65,536 entries stay
    static, all others become operands, known at run time.  Pairs are looked at one by one, up to 2^30 of them; a mask
    class with `blocks` of its own answers at once (see `Mask`).

    Args:
      fn: takes int32 positions i `[bt, 1]` and j `[1, bs]` and an array for each operand; returns booleans
        broadcastable to `[bt, bs]`.  It is elementwise: no pair may depend on which others are in its tile.  With two
        arguments more it is told b and h before the positions, as in `jattn.mods.function`.
      *operands: made with `jattn.operand`; each reaches `fn` broadcastable to `[bt, bs]`.

    Raises:
      TypeError: `fn` is not callable with that many arguments.  When `attention` is called, TypeError or ValueError:
        it returns no booleans, is not elementwise, or draws random numbers.

    >>> import numpy as np, jattn
    >>> even = jattn.masks.function(lambda i, j: j % 2 == 0)
    >>> def packed(document):
    ...     return jattn.masks.function(lambda i, j: document[i] == document[j])
    >>> q = np.ones((1, 4, 1, 4), "float32")
    >>> jattn.weights(q, q, q, mask=even & packed(np.array([0, 0, 0, 1])))[0, 0].tolist()[0]
    [0.5, 0.0, 0.5, 0.0]

    Source: Dong et al. 2024, "Flex Attention" (mask_mod).
    """
    return Function.of("masks.function", fn, operands, "")
