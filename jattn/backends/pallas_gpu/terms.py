"""Terms in the layout of the GPU kernels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jattn_kernels.gpu.layout import OperandLayout, lay_out
from jattn_kernels.gpu.sizes import Lengths
from jattn_kernels.tiles.functions import LOG2E, TileFunctions

from jattn import gates
from jattn._terms import AnyArray, FieldValue, Offsets, Operand, counter_hash, term
from jattn.backends.contract import Shaped, Spec
from jattn.backends.pallas.terms import Packed, TileTerms, Words, terms_of
from jattn.mods import Mod, SoftCap


@term
class LookedUpDiagonalBias(Mod):
    """score + a strip of numbers along diagonals, looked up at j - i: what `Relative` becomes."""

    hides = True
    finite = affine = True

    strip: FieldValue
    lead: FieldValue

    def __call__(self, score: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
        return score + self.strip.at(i - self.lead, j)


@term
class LookedUp(Packed):
    """What `masks.blocks` becomes: bits looked up by i and j."""

    def __call__(self, i: jax.Array, j: jax.Array) -> jax.Array:
        return self.bits.at(i, j)


@dataclasses.dataclass(frozen=True)
class Mixed:
    """Words of a dropout's hash, which depend on a row or a column alone."""

    gate: gates.Dropout  # its operands are their numbers
    offsets: Offsets  # their operands are numbers as well
    part: Literal["factor", "row", "column"]

    @property
    def axes(self) -> str:
        first = self.offsets.first
        return "bht" if self.part != "column" else "bs" if isinstance(first, Operand) and "b" in first.axes else "s"

    def words(self, operands: Sequence[AnyArray], lengths: Lengths) -> jax.Array:
        """`[b, h, t]`, or `[s]` or `[b, s]` of columns."""
        value = lambda x: jnp.asarray(operands[x.array] if isinstance(x, Operand) else x)
        along = lambda x: value(x).reshape(-1, 1, 1)
        where = Offsets(along(self.offsets.lead), along(self.offsets.first))
        i, j = where.at(*(jnp.arange(n, dtype=jnp.int32)[None, None] for n in (lengths.t, lengths.s)))
        if self.part == "column":
            return counter_hash.columns(j[:, 0] if self.axes == "bs" else j[0, 0])
        b = along(self.gate.b)
        longest = math.lcm(len(b), len(i))  # each element uses entry b % length
        b, i = (jnp.tile(x, (longest // len(x), 1, 1)) for x in (b, i))
        rows = counter_hash.rows(value(self.gate.seed), b, value(self.gate.h)[None, :, None], i)
        return rows.factor if self.part == "factor" else rows.word


@term
class StagedDropout(gates.Gate):
    """What `gates.dropout` becomes: the words of its hash come from outside, and a pair costs a multiplication."""

    gate: gates.Dropout
    factor: FieldValue
    row: FieldValue
    column: FieldValue

    def __call__(self, weight: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
        del i, j
        return self.gate.drop(weight, counter_hash.join(counter_hash.RowHash(self.factor, self.row), self.column))


@jax.custom_vjp
def _columns(table: jax.Array, at: jax.Array) -> jax.Array:
    """table[..., at] of columns inside the table; its gradient is added up by column, since what scatters adds in any
    order, and bits would differ from run to run."""
    return table[..., at]


def _columns_forward(table: jax.Array, at: jax.Array) -> Any:
    return _columns(table, at), (at, jnp.arange(table.shape[-1], dtype=at.dtype))


def _columns_backward(saved: Any, gradient: jax.Array) -> Any:
    at, columns = saved
    here, gradient = at == columns[:, None], gradient[..., None, :]
    sums = jnp.sum(jnp.where(here, gradient, jnp.zeros_like(gradient)), -1)
    return sums, np.zeros(at.shape, jax.dtypes.float0)


_columns.defvjp(_columns_forward, _columns_backward)


def looked_up(spec: Spec, operands: Sequence[Shaped]) -> list[bool]:
    """Which operands are tables that a user's function looks up.

    Which of a table's numbers a tile adds to is known only in the kernel, and only one block may add to a number, or
    bits would differ from run to run: their gradients are those of the tiled twin.
    """
    relative = GpuTerms(spec, Lengths(1, 1), "t").relative
    axes = spec.signature.axes
    return [len(x.shape) > len(y) and n not in relative for n, (x, y) in enumerate(zip(operands, axes, strict=True))]


_LARGE = 1e30
"""Scores of which a multiple may not be finite.  Of smaller ones a row's maximum is kept in the exponent's units: the
difference and the factor are one instruction."""
_SMALL = 60.0
"""Scores whose exponentials are e^-60 to e^60, 2^24 of which add up to less than 2e33: no maximum is taken off.
float16 has no such numbers."""


def _bound(mods: Sequence[Mod]) -> float:
    """How large scores can come out, as far as is known while tracing."""
    last = mods[-1] if mods else None
    return float(last.cap) if isinstance(last, SoftCap) and isinstance(last.cap, (int, float)) else math.inf


class GpuTerms(TileTerms):
    """The terms of a call for kernels whose rows are queries, `t`, or keys, `s`."""

    along_diagonal: Any = LookedUpDiagonalBias
    packed: type[Packed] = LookedUp
    scaled: bool
    small: bool
    natural: bool
    exact: bool

    def __init__(self, spec: Spec, lengths: Lengths, rows: str):
        super().__init__(spec, lengths)
        self.rows = rows
        # A scale that is a factor of the exponent must not turn a row's greatest product into its least.
        self.scaled = self.has_mods or not self.scale > 0
        most = _bound(terms_of(spec).mods)
        self.natural = self.scaled and most > _LARGE
        self.small = most <= _SMALL and spec.dtype == jnp.bfloat16
        self.exact = True

    @property
    def factor(self) -> float:
        return self.scale * (1.0 if self.scaled else LOG2E)

    def functions(self) -> TileFunctions:
        return super().functions()._replace(scaled=self.scaled, small=self.small)

    def gate(self, gate: gates.Gate, offsets: Offsets) -> gates.Gate:
        if not isinstance(gate, gates.Dropout) or gate.rate == 0:
            return gate
        mixed = (Mixed(gate, offsets, "factor"), Mixed(gate, offsets, "row"), Mixed(gate, offsets, "column"))
        words = (Operand(x, x.axes) for x in mixed)
        return StagedDropout(dataclasses.replace(gate, seed=None, b=None, h=None), *words)

    def arrays(self, operands: Sequence[AnyArray]) -> list[tuple[jax.Array, OperandLayout]]:
        """The array of each slot and its layout."""
        return [self.laid_out(slot, operands) for slot in self.slots]

    def laid_out(self, slot: Operand, operands: Sequence[AnyArray]) -> tuple[jax.Array, OperandLayout]:
        """The array of a slot and how it lies."""
        if isinstance(slot.array, Words):
            words = slot.array
            array, layout = lay_out(words.of_heads(operands), "h", self.frame.padded, self.rows)
            return array, dataclasses.replace(layout, cells=words.cells)
        if isinstance(slot.array, Mixed):
            words = slot.array.words(operands, Lengths(self.frame.t, self.frame.s))
            return lay_out(words, slot.axes, self.frame.padded, self.rows)
        array, axes = operands[slot.array], slot.axes
        if "r" in axes:
            padded = self.frame.padded
            relative = jnp.arange(sum(padded.values()), dtype=jnp.int32) - padded["t"]  # j - i
            array, axes = self.along_diagonals(slot, operands, relative, _columns)
        return lay_out(array, axes, self.frame.padded, self.rows)
