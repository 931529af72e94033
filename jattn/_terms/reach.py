"""What the windows of a mask say by arithmetic: which keys may be seen, whether a query may see nothing."""

from __future__ import annotations

import math
from typing import NamedTuple

from jattn import masks
from jattn._terms.moved import Moved
from jattn._terms.term import FieldValue


class Span(NamedTuple):
    """i - left <= j <= i + right, which pairs of a mask keep to; `exact`: those pairs are the mask."""

    left: float
    right: float
    exact: bool

    def open(self, t: int, s: int) -> Span:
        """The same with sides as wide as the sequence left open."""
        left = math.inf if self.left >= t - 1 else self.left
        return Span(left, math.inf if self.right >= s - 1 else self.right, self.exact)

    @property
    def full(self) -> bool:
        return self.exact and self.left == self.right == math.inf

    def reach(self, t: int, s: int) -> tuple[int, int]:
        """The first key that some query may see, and the first after the last."""
        return int(max(0, min(s, -self.left))), int(max(0, min(s, t + self.right)))

    def shows_all(self, t: int, s: int) -> bool:
        """Whether it is certain that every key is seen by some query."""
        return self.exact and self.left + self.right >= 0 and self.reach(t, s) == (0, s)

    def blind(self, t: int, s: int) -> bool:
        """Whether some query may see nothing."""
        return not (self.exact and self.right >= 0 and t - 1 - self.left <= s - 1 and self.left + self.right >= 0)


def span(mask: masks.Mask | None) -> Span:
    """The narrowest window around a mask that its static windows give."""
    if mask is None:
        return Span(math.inf, math.inf, True)
    if isinstance(mask, masks.And):
        one, other = span(mask.left), span(mask.right)
        return Span(min(one.left, other.left), min(one.right, other.right), one.exact and other.exact)
    if isinstance(mask, Moved):
        return _moved(span(mask.mask), mask.offsets.lead)
    if isinstance(mask, masks.Window):
        sides = [math.inf if x is None else x for x in (mask.left, mask.right)]
        left, right = (x if isinstance(x, (int, float)) else math.inf for x in sides)
        return Span(left, right, [left, right] == sides)
    return Span(math.inf, math.inf, False)


def _moved(near: Span, lead: FieldValue) -> Span:
    """A window seen from queries that stand `lead` further beyond the first key than they are counted."""
    if isinstance(lead, int):
        return near._replace(left=near.left - lead, right=near.right + lead)
    return Span(math.inf, math.inf, near.full)
