"""What the windows and lengths of a mask say by arithmetic: which keys are seen, whether a query may see nothing."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp

from jattn import masks
from jattn._terms import positions
from jattn._terms.moved import Moved
from jattn._terms.operand import AnyArray, Operand
from jattn._terms.term import FieldValue, Offsets


class Span(NamedTuple):
    """i - left <= j <= i + right, which pairs of a mask keep to; `exact`: those pairs are the mask; `diagonal`: those
    with i == j are in it at least."""

    left: float
    right: float
    exact: bool
    diagonal: bool = False

    def open(self, t: int, s: int) -> Span:
        """The same with sides as wide as the sequence left open."""
        left = math.inf if self.left >= t - 1 else self.left
        return self._replace(left=left, right=math.inf if self.right >= s - 1 else self.right)

    @property
    def full(self) -> bool:
        return self.exact and self.left == self.right == math.inf

    def reach(self, t: int, s: int) -> tuple[int, int]:
        """The first key that some query may see, and the first after the last."""
        return int(max(0, min(s, -self.left))), int(max(0, min(s, t + self.right)))

    @property
    def pairs_alike(self) -> bool:
        """Whether it is certain that each query sees the key of the same number, if there is one."""
        return (self.exact or self.diagonal) and self.left >= 0 and self.right >= 0

    def shows_all(self, t: int, s: int) -> bool:
        """Whether it is certain that every key is seen by some query."""
        if self.pairs_alike and t >= s:
            return True
        return self.exact and self.left + self.right >= 0 and self.reach(t, s) == (0, s)

    def blind(self, t: int, s: int) -> bool:
        """Whether some query may see nothing."""
        if self.pairs_alike and s >= t:
            return False
        return not (self.exact and self.right >= 0 and t - 1 - self.left <= s - 1 and self.left + self.right >= 0)


def conjuncts(mask: masks.Mask | None) -> list[masks.Mask]:
    """The masks that `&` joins; none of no mask."""
    if isinstance(mask, masks.And):
        return [*conjuncts(mask.left), *conjuncts(mask.right)]
    return [] if mask is None else [mask]


def span(mask: masks.Mask | None, lead: FieldValue = 0) -> Span:
    """The narrowest window around a mask that its static windows give.

    `lead`: how far queries stand beyond where they are counted from.
    """
    if mask is None:
        return Span(math.inf, math.inf, True)
    if isinstance(mask, masks.And):
        one, other = span(mask.left, lead), span(mask.right, lead)
        diagonal = (one.exact or one.diagonal) and (other.exact or other.diagonal)
        return Span(min(one.left, other.left), min(one.right, other.right), one.exact and other.exact, diagonal)
    if isinstance(mask, masks.Or):
        alike = span(mask.left, lead).pairs_alike or span(mask.right, lead).pairs_alike
        return Span(math.inf, math.inf, False, alike)
    if isinstance(mask, Moved):
        more = mask.offsets.lead
        return span(mask.mask, lead + more if isinstance(lead, int) and isinstance(more, int) else None)
    if isinstance(mask, masks.Window):
        return _window(mask, lead)
    if isinstance(mask, masks.Segments):
        # Shards of one sequence, whose ids are not the same, stand where only running tells.
        return Span(math.inf, math.inf, False, mask.own and isinstance(lead, int))
    return Span(math.inf, math.inf, False)


def _window(mask: masks.Window, lead: FieldValue) -> Span:
    sides = [math.inf if x is None else x for x in (mask.left, mask.right)]
    left, right = (x if isinstance(x, (int, float)) else math.inf for x in sides)
    near = Span(left, right, [left, right] == sides)
    if isinstance(lead, int):
        return near._replace(left=near.left - lead, right=near.right + lead)
    return Span(math.inf, math.inf, near.full)


class SeenRun(NamedTuple):
    """A run of keys: each of them is seen by some query, and no other key is."""

    first: int | AnyArray
    """The first of them, of all batch elements or of each, `[b]`."""
    past: int | AnyArray
    """The one after the last, likewise; not past `first` where nothing is seen."""


def seen_run(mask: masks.Mask | None, t: int, s: int) -> SeenRun | None:
    """The keys that t > 0 queries see of s, where windows and lengths alone hide keys; None of other masks."""
    mask, offsets = (mask.mask, mask.offsets) if isinstance(mask, Moved) else (mask, Offsets())
    limits, lefts, rights = [], [], []
    for part in conjuncts(mask):
        if isinstance(part, masks.Window):
            lefts += [] if part.left is None else [part.left]
            rights += [] if part.right is None else [part.right]
        elif isinstance(part, masks.Before) and part.axis == "s":
            limits.append(part.limit)
        else:
            return None
    if not all(map(_of_elements, (offsets.lead, offsets.first, *limits, *lefts, *rights))):
        return None
    if lefts and rights:
        if not all(isinstance(x, int) for x in (*lefts, *rights)):
            return None  # they may leave nothing, which only running tells
        if min(lefts) + min(rights) < 0:
            return SeenRun(0, 0)
    lead, at = _number(offsets.lead), _number(offsets.first)
    first, past = 0, s
    for limit in limits:
        past = _least(past, _plus(_number(limit), at, -1))
    for left in lefts:
        first = _greatest(first, _plus(lead, _number(left), -1))
    for right in rights:
        past = _least(past, _least(s, _plus(lead, _number(right), 1)) + t)
    return SeenRun(*_alike(first, past))


def _of_elements(x: FieldValue) -> bool:
    """Whether it is one number, or has one for each batch element."""
    return isinstance(x, int) or (isinstance(x, Operand) and x.axes in ("", "b") and x.array.ndim == len(x.axes))


def _number(x: FieldValue) -> Any:
    return x.array if isinstance(x, Operand) else x


def _plus(x: Any, y: Any, sign: int) -> Any:
    """x + sign * y, without a sum that wraps around."""
    if isinstance(x, int) and isinstance(y, int):
        return x + sign * y
    x, y = _alike(jnp.asarray(x, jnp.int32), y if isinstance(y, int) else jnp.asarray(y, jnp.int32))
    return positions.shifted(x, sign * y)


def _least(x: Any, y: Any) -> Any:
    return min(x, y) if isinstance(x, int) and isinstance(y, int) else jnp.minimum(*_alike(x, y))


def _greatest(x: Any, y: Any) -> Any:
    return max(x, y) if isinstance(x, int) and isinstance(y, int) else jnp.maximum(*_alike(x, y))


def _alike(x: Any, y: Any) -> tuple[Any, Any]:
    """Two of numbers and `[b]`; element b uses entry b % length of the shorter."""
    sizes = [1 if isinstance(one, int) else one.size for one in (x, y)]
    if min(sizes) in (1, max(sizes)):
        return x, y
    return tuple(jnp.tile(one, max(sizes) // one.size) for one in (x, y))  # type: ignore[return-value]
