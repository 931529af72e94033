"""Copies between global and shared memory on Ampere: each thread moves 16 bytes at a time.

The machine knows no ends of arrays, so they are looked at here: what is past the end of an axis reads as zeros and is
not written.  An axis that tiles divide costs nothing.  Mosaic's own copies take no rows that may be past the end, nor
vectors shorter than a warpgroup, so its dialects are written here.
"""

# The type checker sees jax 0.10, and Mosaic is that of 0.11 and later.
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportArgumentType=false

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, nvvm

from jattn_kernels.gpu.layout import swizzle

_THREADS = 128
_BYTES = 16  # a thread moves so many at once


def bring(ref: jax.Ref, at: tuple[Any, ...], to: jax.Ref) -> None:
    """Begins to copy `ref[at]`, a vector or tile in global memory, to shared memory."""

    def one(here: ir.Value, there: ir.Value, inside: ir.Value | None) -> None:
        i32 = ir.IntegerType.get_signless(32)
        size = None if inside is None else arith.select(inside, mgpu.c(_BYTES, i32), mgpu.c(0, i32))
        nvvm.cp_async_shared_global(there, here, _BYTES, nvvm.LoadCacheModifierKind.CG, cp_size=size)

    _copy(ref, at, to, one)


def send(staged: jax.Ref, ref: jax.Ref, at: tuple[Any, ...]) -> None:
    """Copies a vector or tile in shared memory, which all threads see, to `ref[at]` in global memory."""

    def one(there: ir.Value, here: ir.Value, inside: ir.Value | None) -> None:
        x = llvm.load(ir.VectorType.get((4,), ir.IntegerType.get_signless(32)), here)
        if inside is None:
            llvm.store(x, there)
        else:
            with utils.when(inside):
                llvm.store(x, there)

    _copy(ref, at, staged, one)


def write(x: jax.Array, to: jax.Ref, layout: plgpu.Layout, in_order: bool = False) -> None:
    """Writes a tile of that layout to shared memory, or a vector to global memory; all threads come and go together.

    `in_order`: the tile there lies in the order of its rows, not as products take it.
    """
    transforms = () if in_order else _transforms(to)

    @plgpu.inline_mgpu(arg_types=(layout, plgpu.RefType(transforms)))
    def store(_: mgpu.LaunchContext, x: mgpu.FragmentedArray, to: ir.Value) -> None:
        utils.warpgroup_barrier()  # nobody reads what was there
        if transforms:
            x.store_tiled(to, transforms[1].swizzle, optimized=False)
        else:
            x.store_untiled(to, optimized=False)
        utils.warpgroup_barrier()

    _call(store, x, to)


def commit() -> None:
    """What was begun to be copied since the last time is a group."""
    _call(plgpu.inline_mgpu()(lambda _: nvvm.cp_async_commit_group() and None))


def wait(groups: int) -> None:
    """Waits until all threads' copies are there, but of the last `groups`."""

    @plgpu.inline_mgpu()
    def wait(_: mgpu.LaunchContext) -> None:
        nvvm.cp_async_wait_group(groups)
        utils.warpgroup_barrier()

    _call(wait)


def _call(fn: Callable[..., None], *args: jax.Array | jax.Ref) -> None:
    fn(*args)  # the decorator takes away the context, which types do not say


def _transforms(ref: jax.Ref) -> tuple[Any, ...]:
    """How a tile in shared memory lies; a vector lies as it is."""
    return swizzle(ref.shape[-1], ref.dtype.itemsize) if len(ref.shape) == 2 else ()


def _copy(ref: jax.Ref, at: tuple[Any, ...], staged: jax.Ref, one: Callable[..., None]) -> None:
    """`one(global, shared, inside)` for all 16 bytes; `inside` says whether they are, None that they always are."""
    ends = [_left(n, index) for n, index in zip(ref.shape, at, strict=False) if isinstance(index, pl.Slice)]
    ends += [None] * (len(staged.shape) - len(ends))
    some = [x for x in ends if x is not None]
    splat = plgpu.Layout.WG_SPLAT

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), plgpu.RefType(_transforms(staged)), *[splat] * len(some)))
    def copy(_: mgpu.LaunchContext, there: ir.Value, here: ir.Value, *some: mgpu.FragmentedArray) -> None:
        rest = iter(some)
        left = [None if x is None else next(rest).registers.item() for x in ends]
        (_copy_tile if len(left) == 2 else _copy_vector)(there, here, left, one)

    _call(copy, ref.at[at], staged, *some)


def _left(n: int, index: pl.Slice) -> jax.Array | None:
    """How many entries are left from a slice's start on; None if all that it has are."""
    return None if n % index.size == 0 else jnp.int32(n) - index.start


def _copy_vector(there: ir.Value, here: ir.Value, left: Sequence[ir.Value | None], one: Callable[..., None]) -> None:
    (n,), kind = ir.MemRefType(here.type).shape, ir.MemRefType(here.type).element_type
    each = 8 * _BYTES // utils.bitwidth(kind)
    for first in range(0, n, _THREADS * each):
        place = _plus(_times(utils.thread_idx(), each), first)
        inside = _less(place, left[0])
        with _when(_less(place, n) if n - first < _THREADS * each else None):
            one(_at(there, place), _at(here, place), inside)


def _copy_tile(there: ir.Value, here: ir.Value, left: Sequence[ir.Value | None], one: Callable[..., None]) -> None:
    """Of a tile in shared memory that lies in tiles of 8 rows, its rows' 16 bytes permuted within each (`swizzle`)."""
    ty = ir.MemRefType(here.type)
    eights, stretches, _, width = ty.shape
    each = 8 * _BYTES // utils.bitwidth(ty.element_type)
    chunks = width // each  # of a row of a stretch: 2, 4 or 8
    thread = utils.thread_idx()
    row, chunk = _over(thread, chunks), _rest(thread, chunks)
    permuted = arith.xori(chunk, _rest(_over(_times(row, chunks), 8), chunks))
    (stride, _), _ = ir.MemRefType(there.type).get_strides_and_offset()
    step = _THREADS // chunks  # rows that the threads have at once, a multiple of 8
    base_there = _at(there, _plus(_times(row, stride), _times(chunk, each)))
    in_tile = _plus(_times(_over(row, 8), stretches * 8 * width), _times(_rest(row, 8), width))
    base_here = _at(here, _plus(in_tile, _times(permuted, each)))
    for first in range(0, eights * 8, step):
        inside_rows = _less(_plus(row, first), left[0])
        with _when(_less(_plus(row, first), eights * 8) if first + step > eights * 8 else None):
            for stretch in range(stretches):
                inside = _both(inside_rows, _less(_plus(_times(chunk, each), stretch * width), left[1]))
                at_there = first * stride + stretch * width
                at_here = (first // 8 * stretches + stretch) * 8 * width
                move = lambda base, n: utils.getelementptr(base, [n], ty.element_type)
                one(move(base_there, at_there), move(base_here, at_here), inside)


def _at(ref: ir.Value, place: ir.Value) -> ir.Value:
    """The pointer to a place of a flat reference; `place` in elements."""
    pointer = utils.memref_ptr(ref)
    if not utils.is_smem_ref(ir.MemRefType(ref.type)):
        pointer = llvm.addrspacecast(llvm.PointerType.get(address_space=1), pointer)
    return utils.getelementptr(pointer, [place], ir.MemRefType(ref.type).element_type)


def _constant(n: int) -> ir.Value:
    return mgpu.c(n, ir.IntegerType.get_signless(32))


def _plus(x: ir.Value, y: ir.Value | int) -> ir.Value:
    return x if isinstance(y, int) and y == 0 else arith.addi(x, _constant(y) if isinstance(y, int) else y)


def _times(x: ir.Value, n: int) -> ir.Value:
    return arith.muli(x, _constant(n))


def _over(x: ir.Value, n: int) -> ir.Value:
    return arith.divui(x, _constant(n))


def _rest(x: ir.Value, n: int) -> ir.Value:
    return arith.remui(x, _constant(n))


def _less(x: ir.Value, y: ir.Value | int | None) -> ir.Value | None:
    if y is None:
        return None
    return arith.cmpi(arith.CmpIPredicate.slt, x, _constant(y) if isinstance(y, int) else y)


def _both(x: ir.Value | None, y: ir.Value | None) -> ir.Value | None:
    return x if y is None else y if x is None else arith.andi(x, y)


def _when(condition: ir.Value | None) -> Any:
    return contextlib.nullcontext() if condition is None else utils.when(condition)
