"""Functions that a user writes: what arguments they take, and what terms made of one have in common."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Self

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike

from jattn._terms import FieldValue, Operand, Term, operand, term
from jattn._terms.closures import Closure, hoist


def function_parts(
    name: str, fn: Callable, operands: Sequence[ArrayLike | Operand], *forms: str, tables: bool = False
) -> tuple[str, Closure, tuple[Operand, ...], tuple[Operand, ...]]:
    """The first of the forms, lists of arguments, that a user's function has besides an argument for each operand; the
    function, its operands, and those that it closes over.  Raises where it has none of them."""
    if not callable(fn):
        raise TypeError(f"{name}: fn must be callable, got {fn!r}")
    closure, held = hoist(fn, tables)
    form = next((x for x in forms if _takes(fn, x.count(",") + 1 + len(operands))), None)
    if form is None:
        wanted = " or ".join(f"({x})" for x in forms)
        counts = " or ".join(str(x.count(",") + 1 + len(operands)) for x in forms)
        raise TypeError(
            f"{name}: {closure.name}{inspect.signature(fn)} must take {wanted} and an argument for each of its"
            f" {len(operands)} operands, {counts} in all"
        )
    return form, closure, tuple(x if isinstance(x, Operand) else operand(x) for x in operands), held


def _takes(fn: Callable, count: int) -> bool:
    """Whether a function can be called with so many arguments.  Built-in functions do not tell."""
    try:
        inspect.signature(fn).bind(*[None] * count)
    except ValueError:
        return True
    except TypeError:
        return False
    return True


@term
class OfUser(Term):
    """A function of a tile that a user wrote: what the masks, mods and gates of that kind have in common."""

    closure: Closure
    operands: tuple[FieldValue, ...]
    held: tuple[FieldValue, ...] = ()
    told: str | None = None
    """Which of the batch element `b` and the head `h` it is told and makes use of; None if it takes neither."""
    b: FieldValue = None
    h: FieldValue = None

    def bound(self, b: Operand, h: Operand) -> Self:
        told = self.told or ""
        return dataclasses.replace(self, b=b if "b" in told else None, h=h if "h" in told else None)

    def result(self, *tile: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
        """What the function returns of a tile and its positions."""
        which = () if self.told is None else tuple(jnp.int32(0) if x is None else x for x in (self.b, self.h))
        return jnp.asarray(self.closure.build(self.held)(*tile, *which, i, j, *self.operands))

    @classmethod
    def of(cls, name: str, fn: Callable, operands: Sequence[ArrayLike | Operand], tile: str) -> Self:
        """Of a function of `(tile, i, j, *operands)`, or of `(tile, b, h, i, j, *operands)`."""
        forms = [", ".join(filter(None, (tile, x))) for x in ("i, j", "b, h, i, j")]
        form, closure, named, held = function_parts(name, fn, operands, *forms, tables=not tile)
        return cls(closure, named, held, "bh" if form == forms[1] else None)
