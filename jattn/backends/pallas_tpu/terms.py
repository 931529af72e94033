"""Terms in the layout of the TPU kernels."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jattn_kernels.tiles.work import Direction, Frame
from jattn_kernels.tpu.layout import OperandLayout, lay_out

from jattn._terms import AnyArray, Operand
from jattn.backends.contract import Spec
from jattn.backends.pallas.terms import TileTerms, Words


def heads_first(x: jax.Array) -> jax.Array:
    """`[b, t, h, ..]` to `[b, h, t, ..]`, and back."""
    return jnp.swapaxes(x, 1, 2)


class TpuTerms(TileTerms):
    """The terms of a call for one direction: arrays in the kernels' layout, as a function of the operands."""

    def __init__(self, spec: Spec, frame: Frame, direction: Direction):
        super().__init__(spec, frame)
        self.frame: Frame = frame
        self.direction = direction

    def arrays(self, operands: Sequence[AnyArray]) -> list[jax.Array]:
        """Arrays for the slots, differentiable."""
        return [self._array(slot, operands)[0] for slot in self.slots]

    def layouts(self, operands: Sequence[AnyArray]) -> tuple[OperandLayout, ...]:
        """The layout of the array of each slot."""
        layouts = []
        jax.eval_shape(lambda x: layouts.extend(self._array(slot, x)[1] for slot in self.slots), operands)
        return tuple(layouts)

    def _array(self, slot: Operand, operands: Sequence[AnyArray]) -> tuple[jax.Array, OperandLayout]:
        if isinstance(slot.array, Words):
            words = slot.array
            array = words.of_heads(operands)
            return array.reshape(-1), OperandLayout("hc", 1, array.shape[0], False, words.cells)
        array, axes = operands[slot.array], slot.axes
        if "r" in slot.axes:
            padded = self.frame.padded
            lane = jnp.arange(sum(padded.values()), dtype=jnp.int32)
            relative = lane - padded["t"] if self.direction == "forward" else padded["s"] - lane  # j - i
            array, axes = self.along_diagonals(slot, operands, relative)
        return lay_out(array, axes, self.frame)

    def query(self, q: jax.Array) -> jax.Array:
        """Heads first, with the scale unless the scores get it."""
        return heads_first(q if self.exact else (q.astype(jnp.float32) * self.factor).astype(q.dtype))
