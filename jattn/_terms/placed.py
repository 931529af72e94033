"""Terms of queries and keys that stand where arrays say, each at a place of its own, as drafts that are a tree do."""

from __future__ import annotations

from typing import Any

import jax

from jattn import gates, masks, mods
from jattn._terms.block_tables import Answer, Range
from jattn._terms.operand import Operand
from jattn._terms.term import FieldValue, term
from jattn.mods._buckets import Bucketed

_WHEREVER = mods.SoftCap, mods.Bias  # what is the same wherever a query and a key stand


@term
class PlacedMask(masks.Mask):
    """A mask of queries at i and keys at j, whatever their call counts."""

    mask: masks.Mask
    i: FieldValue
    j: FieldValue

    def __call__(self, i: jax.Array, j: jax.Array) -> jax.Array:
        del i, j
        return self.mask(self.i, self.j)

    def blocks(self, i: Range, j: Range) -> Answer:
        del i, j
        return self.mask.blocks(self.i, self.j)


@term
class PlacedMod(mods.Mod):
    """A mod of them."""

    mod: mods.Mod
    i: FieldValue
    j: FieldValue

    @property
    def hides(self) -> bool:
        return self.mod.hides

    @property
    def finite(self) -> bool:
        return self.mod.finite

    @property
    def affine(self) -> bool:
        return self.mod.affine

    def __call__(self, score: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
        del i, j
        return self.mod(score, self.i, self.j)


@term
class PlacedGate(gates.Gate):
    """A gate of them."""

    gate: gates.Gate
    i: FieldValue
    j: FieldValue

    @property
    def finite(self) -> bool:
        return self.gate.finite

    def __call__(self, weight: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
        del i, j
        return self.gate(weight, self.i, self.j)


def placed(terms: Any, i: jax.Array, j: jax.Array) -> Any:
    """The pytree of terms, its masks, mods and gates with queries at i `[b, t]` and keys at j `[b, s]`, int32.

    What they hold along `t` and `s` stays, of the call's own rows.
    """
    here = Operand(i, "bt"), Operand(j, "bs")
    of_pairs = lambda x: x.of_pairs(i, j) if isinstance(x, masks.Blocks) else x

    def one(x: Any) -> Any:
        if isinstance(x, Bucketed):  # it takes a tile's positions to follow each other
            return x.of_pairs(i, j)
        if isinstance(x, mods.Mod):
            return x if isinstance(x, _WHEREVER) else PlacedMod(x, *here)
        if isinstance(x, masks.Mask):
            inner = jax.tree.map(of_pairs, x, is_leaf=lambda x: isinstance(x, (masks.Blocks, Operand)))
            return PlacedMask(inner, *here)
        return PlacedGate(x, *here) if isinstance(x, gates.Gate) else x

    return jax.tree.map(one, terms, is_leaf=lambda x: isinstance(x, (masks.Mask, mods.Mod, gates.Gate)))
