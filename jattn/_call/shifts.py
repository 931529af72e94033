"""Terms for queries that do not start at position 0: those of a decoding step, which go on where a cache ends.

A mask, mod or gate counts query positions from 0.  Shifted, it is called with i + start[b] in the place of i; and of an
operand with an axis t it gets the rows start[b] .. start[b] + t - 1.  So it says of each query what it says of it where
all positions are there.
"""

from __future__ import annotations

from typing import Any

import jax

from jattn._call import checks
from jattn._terms import FieldValue, Operand, term
from jattn._terms.block_tables import Answer, Range
from jattn.gates import Gate
from jattn.masks import Mask
from jattn.mods import Mod

Options = dict[str, Any]


@term
class ShiftedMask(Mask):
    """A mask of queries that start elsewhere."""

    mask: Mask
    start: FieldValue

    def __call__(self, i: jax.Array, j: jax.Array) -> jax.Array:
        return self.mask(i + self.start, j)

    def blocks(self, i: Range, j: Range) -> Answer:
        return self.mask.blocks(Range(i.lo + self.start.lo, i.hi + self.start.hi), j)


@term
class ShiftedMod(Mod):
    """A mod of queries that start elsewhere."""

    mod: Mod
    start: FieldValue

    @property
    def hides(self) -> bool:
        return self.mod.hides

    def __call__(self, score: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
        return self.mod(score, i + self.start, j)


@term
class ShiftedGate(Gate):
    """A gate of queries that start elsewhere."""

    gate: Gate
    start: FieldValue

    def __call__(self, weight: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
        return self.gate(weight, i + self.start, j)


def shift(options: Options, start: jax.Array) -> Options:
    """Options of `jattn.attention` with all their terms shifted by start `[b]`."""
    at = Operand(start, "b")
    wrappers: Any = ((Mask, ShiftedMask), (Mod, ShiftedMod), (Gate, ShiftedGate))

    def wrap(term: object) -> object:
        return next((wrapper(term, at) for kind, wrapper in wrappers if isinstance(term, kind)), term)

    kinds = tuple(kind for kind, _ in wrappers)
    return jax.tree.map(wrap, options, is_leaf=lambda x: isinstance(x, kinds))


def take_rows(options: Options, start: jax.Array, t: int, sizes: dict[str, int]) -> Options:
    """Options made for `sizes`, with t rows from start `[b]` on of every operand that has an axis t.

    Raises:
      ValueError: an operand of a mask, mod or gate has not the sizes.
    """
    if options.get("mask") is not None:
        options = {**options, "mask": checks.place(options["mask"], sizes)}

    def rows(x: object) -> object:
        if not isinstance(x, Operand) or "t" not in x.axes:
            return x
        wrong = {axis: n for axis, n in zip(x.axes, x.array.shape, strict=False) if n != sizes[axis]}
        if wrong:
            raise ValueError(
                f'to decode into a cache, an operand with axes "{x.axes}" must have'
                f" {', '.join(f'{axis} = {sizes[axis]}' for axis in wrong)}, got shape {list(x.array.shape)}"
            )
        per_element = "b" in x.axes
        axes = x.axes if per_element else "b" + x.axes
        take = lambda array, first: jax.lax.dynamic_slice_in_dim(array, first, t, axes.index("t") - 1)
        return Operand(jax.vmap(take, (0 if per_element else None, 0))(x.array, start), axes)

    return jax.tree.map(rows, options, is_leaf=lambda x: isinstance(x, Operand))
