"""Where a call stands in something larger: its first batch element, head, query and key."""

from __future__ import annotations

from jattn._terms.operand import Operand, Size, indices
from jattn._terms.term import FieldValue, Offsets, Term, term


@term
class Origin(Term):
    """Where the first batch element, head, query and key of a call stand; numbers, or operands known at run time."""

    b: FieldValue = 0
    h: FieldValue = None
    """None where all heads are here, so that what has an entry for each head has no more than those."""
    offsets: Offsets = Offsets()

    @property
    def first_head(self) -> FieldValue:
        return 0 if self.h is None else self.h

    def indices(self, b: Size, h: Size) -> tuple[Operand, Operand]:
        """Which of all batch elements `[b]` and of all heads `[h]` the call's own are."""
        return indices(b, "b", self.b), indices(h, "h", self.first_head)
