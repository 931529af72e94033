"""Terms in the layout of the GPU kernels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jattn_kernels.gpu.layout import OperandLayout, lay_out
from jattn_kernels.gpu.sizes import Lengths

from jattn._terms import AnyArray, FieldValue, Operand, term
from jattn.backends.contract import Spec
from jattn.backends.pallas.terms import Packed, TileTerms, Words
from jattn.mods import Mod


@term
class Strip(Mod):
    """score + a strip of numbers along diagonals, looked up at j - i: what `Relative` becomes."""

    hides = True

    strip: FieldValue
    lead: FieldValue

    def __call__(self, score: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
        return score + self.strip.at(i - self.lead, j)


@term
class LookedUp(Packed):
    """What `masks.blocks` becomes: bits looked up by i and j."""

    def __call__(self, i: jax.Array, j: jax.Array) -> jax.Array:
        return self.bits.at(i, j)


class GpuTerms(TileTerms):
    """The terms of a call for kernels whose rows are queries, `t`, or keys, `s`."""

    along_diagonal: Any = Strip
    packed: type[Packed] = LookedUp
    natural: bool
    exact: bool

    def __init__(self, spec: Spec, lengths: Lengths, rows: str):
        super().__init__(spec, lengths)
        self.rows = rows
        # A scale that is a factor of the exponent must not turn a row's greatest product into its least.
        self.natural = self.has_mods or not self.scale > 0
        self.exact = True

    def arrays(self, operands: Sequence[AnyArray]) -> list[tuple[jax.Array, OperandLayout]]:
        """For each slot its array and how it lies."""
        return [self._array(slot, operands) for slot in self.slots]

    def _array(self, slot: Operand, operands: Sequence[AnyArray]) -> tuple[jax.Array, OperandLayout]:
        if isinstance(slot.array, Words):
            words = slot.array
            array, layout = lay_out(words.of_heads(operands), "h", self.frame.padded, self.rows)
            return array, dataclasses.replace(layout, cells=words.cells)
        array, axes = operands[slot.array], slot.axes
        if "r" in axes:
            padded = self.frame.padded
            relative = jnp.arange(sum(padded.values()), dtype=jnp.int32) - padded["t"]  # j - i
            array, axes = self.along_diagonals(slot, operands, relative)
        return lay_out(array, axes, self.frame.padded, self.rows)
