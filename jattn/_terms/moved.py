"""The mask of a call as a function of the call's own positions, for what counts its blocks."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from jattn import masks
from jattn._terms.block_tables import Answer, Range
from jattn._terms.term import FieldValue, Offsets, Terms, term


@term
class Moved(masks.Mask):
    """A mask of queries and keys that stand elsewhere than their call counts them."""

    mask: masks.Mask
    offsets: Offsets

    def __call__(self, i: jax.Array, j: jax.Array) -> jax.Array:
        return self.mask(*self.offsets.at(i, j))

    def blocks(self, i: Range, j: Range) -> Answer:
        (i_lo, j_lo), (i_hi, j_hi) = (
            Offsets(_end(self.offsets.lead, n), _end(self.offsets.first, n)).at(i[n], j[n]) for n in range(2)
        )
        return self.mask.blocks(Range(i_lo, i_hi), Range(j_lo, j_hi))


def _end(offset: FieldValue, n: int) -> FieldValue:
    """An offset's least (0) or greatest (1) number in a block: of an operand it is a range while masks are asked."""
    return offset[n] if isinstance(offset, Range) else offset


def moved(terms: Terms) -> masks.Mask | None:
    """The mask of some terms, by the positions that their call counts from 0.

    What looks at j - i alone, or at no position, is not told where both stand, so that where that is known only at run
    time the mask may yet be static.
    """
    if terms.mask is None:
        return None
    offsets = dataclasses.replace(terms.offsets, first=0) if _of_difference(terms.mask) else terms.offsets
    static = isinstance(offsets.lead, (int, np.integer)) and isinstance(offsets.first, (int, np.integer))
    return terms.mask if static and offsets.lead == offsets.first == 0 else Moved(terms.mask, offsets)


def _of_difference(mask: masks.Mask) -> bool:
    """Whether a mask is the same wherever both positions are moved by as much."""
    if isinstance(mask, (masks.And, masks.Or)):
        return _of_difference(mask.left) and _of_difference(mask.right)
    if isinstance(mask, masks.Not):
        return _of_difference(mask.mask)
    return isinstance(mask, (masks.Window, masks.Dilated, masks.Segments, masks.Dense))
