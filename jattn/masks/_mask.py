"""What a mask is, and how masks join."""

from __future__ import annotations

import jax
import numpy as np

from jattn._terms import Term, plain, term
from jattn._terms.block_tables import Answer, Range


class Mask(Term):
    """What `attention(mask=...)` takes.  Make one with the functions of this module, or a subclass of your own.

    A subclass needs `__call__` alone.  With `blocks` too, blocks of pairs that it hides are never computed, and blocks
    that it leaves whole never look at it.  Its attributes may be numbers, and arrays, which are operands.

    >>> import dataclasses, jax, jattn
    >>> from jattn import masks
    >>> @dataclasses.dataclass(frozen=True)
    ... class Far(masks.Mask):
    ...     "j <= i - distance: only what lies some way back."
    ...     distance: int
    ...
    ...     def __call__(self, i, j):
    ...         return j <= i - self.distance
    ...
    ...     def blocks(self, i, j):  # the latest query with the earliest key, and the other way round
    ...         return masks.Answer(some=j.lo <= i.hi - self.distance, every=j.hi <= i.lo - self.distance)
    >>> x = jax.ShapeDtypeStruct((1, 1024, 2, 64), "float32")
    >>> plan = jattn.explain(x, x, x, mask=Far(256), blocks=(128, 128))
    >>> plan.blocks  # empty, partial and full, over both heads: 86 of 128 are skipped
    (86, 12, 30)
    """

    def __call__(self, i: jax.Array, j: jax.Array) -> jax.Array:
        """True where a pair attends, broadcastable to `[bt, bs]`, of positions i `[bt, 1]` and j `[1, bs]`, int32."""
        raise NotImplementedError

    def blocks(self, i: Range, j: Range) -> Answer:
        """The answer for every block, of the ranges of its positions; unless told better, look at every pair.

        The ranges are `[query blocks, 1]` and `[1, key blocks]`.  They are NumPy's, and an answer in NumPy is known
        while tracing; a mask that holds arrays is asked with their ranges in the place of them, and answers in JAX.
        """
        del i, j
        return Answer(np.array(True), np.array(False))

    __array_ufunc__ = None  # `array & mask` is this class's to answer, not NumPy's

    def __and__(self, other: Mask) -> Mask:
        return _joined(And, self, other)

    def __or__(self, other: Mask) -> Mask:
        return _joined(Or, self, other)

    def __rand__(self, other: object) -> Mask:
        return _joined(And, self, other)

    def __ror__(self, other: object) -> Mask:
        return _joined(Or, self, other)

    def __invert__(self) -> Mask:
        return Not(self)

    def __bool__(self) -> bool:
        raise TypeError("a mask has no truth value: combine masks with & | ~, not with `and`, `or`, `not`")


def _joined(kind: type[And] | type[Or], left: Mask, right: object) -> Mask:
    """`left & right` or `left | right`."""
    right = plain(right)
    if isinstance(right, (np.ndarray, jax.Array)):
        raise TypeError(
            f"& and | join masks, got an array {list(right.shape)}: make a mask of it with jattn.masks.dense"
        )
    return kind(left, right) if isinstance(right, Mask) else NotImplemented


@term
class And(Mask):
    """Where both attend."""

    left: Mask
    right: Mask

    def __call__(self, i: jax.Array, j: jax.Array) -> jax.Array:
        return self.left(i, j) & self.right(i, j)

    def blocks(self, i: Range, j: Range) -> Answer:
        return self.left.blocks(i, j) & self.right.blocks(i, j)


@term
class Or(Mask):
    """Where one of two attends."""

    left: Mask
    right: Mask

    def __call__(self, i: jax.Array, j: jax.Array) -> jax.Array:
        return self.left(i, j) | self.right(i, j)

    def blocks(self, i: Range, j: Range) -> Answer:
        return self.left.blocks(i, j) | self.right.blocks(i, j)


@term
class Not(Mask):
    """Where another does not attend."""

    mask: Mask

    def __call__(self, i: jax.Array, j: jax.Array) -> jax.Array:
        return ~self.mask(i, j)

    def blocks(self, i: Range, j: Range) -> Answer:
        return ~self.mask.blocks(i, j)
