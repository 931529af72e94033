"""Look-ups at computed indices inside a Mosaic GPU kernel: each thread loads the numbers of its own places.

Mosaic has no such primitive, so its dialects are written here. A reference may lie in shared memory, one load an
element, or in global memory; if it has several axes, indices count in it as if it were flat.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, memref, vector


def look_up(ref: jax.Ref, index: jax.Array, layout: plgpu.Layout | None) -> jax.Array:
    """`ref.flat[index]` of a reference, for int32 indices inside it, in the reference's dtype.

    Args:
      ref: a reference of pallas, in shared or global memory.
      index: a tile or vector of indices, or a scalar.
      layout: that of `index`, a `plgpu.Layout` or a reduced one, which the result has too; of scalars nothing.
    """
    if index.ndim == 0:
        return ref[index]
    assert layout is not None
    result = plgpu.ShapeDtypeStruct(index.shape, ref.dtype, layout=layout)
    signed = None if not np.issubdtype(ref.dtype, np.integer) else np.issubdtype(ref.dtype, np.signedinteger)

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), layout), return_type=result)
    def gather(_: mgpu.LaunchContext, table: ir.Value, places: mgpu.FragmentedArray) -> mgpu.FragmentedArray:
        table = mgpu.utils.memref_fold(table, 0, len(ref.shape)) if len(ref.shape) > 1 else table
        numbers = np.empty_like(places.registers)
        for at, register in np.ndenumerate(places.registers):
            numbers[at] = _load(table, register)
        return mgpu.FragmentedArray(_registers=numbers, _layout=places.layout, _is_signed=signed)

    load: Any = gather  # the decorator takes away the context, which types do not say
    return load(ref, index)


def _load(table: ir.Value, places: ir.Value) -> ir.Value:
    """The numbers at a register's indices, which hold one or several."""
    at = lambda place: memref.load(table, [arith.index_castui(ir.IndexType.get(), place)])
    if not isinstance(places.type, ir.VectorType):
        return at(places)
    (n,) = ir.VectorType(places.type).shape
    numbers = [at(vector.extract(places, dynamic_position=[], static_position=[k])) for k in range(n)]
    return vector.from_elements(ir.VectorType.get((n,), numbers[0].type), numbers)
