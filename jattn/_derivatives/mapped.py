"""Axes that vmap has put in front of a call's arrays, and how they join the batch axis.

They stay axes of their own until the call is computed, on each device for itself: as one axis with the batch they could
no longer be sharded each in its own way.  An array without such an axis has length 1 there.  Where a call is computed
each joins the batch in front.  What none of them is of keeps its length, and element b of the call uses its entry
b % length, so that nothing is repeated in memory that all elements share.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jattn._terms import AnyArray, Size
from jattn.backends.contract import Spec


def lengths(shapes: Sequence[Sequence[Size]], axes: Sequence[str], mapped: int) -> tuple[Size, ...]:
    """The lengths of the mapped axes, and last of the batch; `axes` are the arrays' own, after the mapped ones."""
    having = [x for x, a in zip(shapes, axes, strict=True) if "b" in a]
    # The length that is not 1, which the greatest is not where it is 0.
    return tuple(next((x[n] for x in (shapes if n < mapped else having) if x[n] != 1), 1) for n in range(mapped + 1))


class BatchFold:
    """How the arrays of one call are folded; `rows` are those of which there is a row for every query."""

    def __init__(self, spec: Spec, args: Sequence[AnyArray], rows: Sequence[AnyArray] = ()):
        self.spec, self.mapped = spec, len(spec.mapped)
        shapes = [x.shape for x in (*args, *rows)]
        self.lengths = lengths(shapes, [*spec.axes, *["bth"] * len(rows)], self.mapped)
        self.shapes = shapes[: len(args)]
        self.outermost = [self._outermost(x) for x in args]

    def _outermost(self, x: AnyArray) -> int:
        """The number of the first mapped axis that an array has; how many there are if it has none."""
        return next((n for n in range(self.mapped) if x.shape[n] != 1), self.mapped)

    @property
    def folded(self) -> Spec:
        """The spec of the folded call, whose operands have a batch axis where they had a mapped one."""
        if not self.mapped:
            return self.spec
        had = (n < self.mapped for n in self.outermost[3:])
        axes = tuple(f"b{a}" if y and "b" not in a else a for a, y in zip(self.spec.axes[3:], had, strict=True))
        return dataclasses.replace(self.spec, mapped=(), signature=self.spec.signature._replace(axes=axes))

    def arg(self, n: int, x: AnyArray) -> jax.Array:
        """Argument n, or its tangent, which has the same axes, folded."""
        return self._join(x, self.spec.axes[n], self.outermost[n])

    def gradient(self, n: int, x: jax.Array) -> jax.Array:
        """The gradient of argument n from that of its folded form, summed over the axes that the argument lacks."""
        shape, outermost = self.shapes[n], self.outermost[n]
        if outermost == self.mapped:
            return x.reshape(shape)
        over, batched = self.mapped - outermost, "b" in self.spec.axes[n]
        full = self.lengths[outermost:]
        x = x.reshape(*full, *x.shape[1:])
        x = jnp.sum(x, [at for at in range(over) if shape[outermost + at] == 1], keepdims=True)
        own = shape[self.mapped] if batched else 1
        x = x.reshape(*x.shape[:over], -1, own, *x.shape[over + 1 :]).sum(over)
        return x.reshape(shape)

    def row(self, x: AnyArray) -> jax.Array:
        """A result, or its tangent or cotangent, folded."""
        return self._join(x, "b", 0)

    def _join(self, x: AnyArray, axes: str, outermost: int) -> jax.Array:
        if not self.mapped:
            return jnp.asarray(x)
        x, over, full = jnp.reshape(x, x.shape[outermost:]), self.mapped - outermost, self.lengths[outermost:]
        if not over:
            return x
        x = x if "b" in axes else jnp.expand_dims(x, over)
        rest = x.shape[over + 1 :]
        x = jnp.tile(x, (*[1] * over, full[-1] // x.shape[over], *[1] * len(rest)))
        return jnp.broadcast_to(x, (*full, *rest)).reshape(math.prod(full), *rest)

    def unfold(self, x: jax.Array) -> jax.Array:
        """A result of the folded call with its mapped axes again: the inverse of `row`."""
        return x.reshape(*self.lengths, *x.shape[1:])


def over(fn: Callable, args: Sequence[Any], mapped: int) -> Any:
    """`jax.vmap` of fn over the mapped axes that each of the args has; the result has all of them."""
    if not mapped:
        return fn(*args)
    axes = [None if x.shape[0] == 1 else 0 for x in args]
    inner = [x[0] if axis is None else x for x, axis in zip(args, axes, strict=True)]
    rest = lambda *args: over(fn, args, mapped - 1)
    if axes == [None] * len(args):
        return jax.tree.map(lambda x: x[None], rest(*inner))
    return jax.vmap(rest, in_axes=axes)(*inner)
