"""Tile sizes of a call on GPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp
from jattn_kernels import chips, tables
from jattn_kernels.gpu.sizes import STORED, TileSizes, stored_as

from jattn._call.targets import Target
from jattn._terms.moved import moved
from jattn._terms.of_user import OfUser
from jattn.backends.contract import Shaped, Spec
from jattn.backends.pallas.terms import parts_of, terms_of
from jattn.backends.pallas.work import class_of
from jattn.mods import Relative

Kernel = Literal["forward", "queries", "keys", "pairs"]
"""One of `Settings`' fields: the forward pass, or the gradients along one axis or both."""
_WIDE = 128  # heads wider than this need other tiles: a row of their sums takes half of a thread's registers
_PIECE = 16  # columns for which terms are evaluated at once, where many numbers for each score stand in registers
_ALIGNED = chips.KIB  # in shared memory everything takes a multiple of it
_SPARE = 4 * chips.KIB  # shared memory for barriers, numbers of rows and what the compiler reduces in
_BARE = 2 * chips.KIB  # the same for Hopper's forward kernel without operands, which reduces in registers
_SCALES = 64  # bytes for a column of the scales of up to eight key heads, in two tiles
_VECTOR = 2 * _ALIGNED  # an operand along one axis takes it: parts of the tiles at hand, sums of its gradient
_FEW = 2  # operands along one axis for which there is room whatever is asked for

_FEWEST = 16  # columns: what the matrix unit takes at once
_STEPS: dict[Kernel, tuple[int, int]] = {"forward": (2, 2), "queries": (2, 4), "keys": (2, 4), "pairs": (1, 2)}
"""The fewest and the most steps of each kernel.  Where rows go by as well, large tiles spare more reading than a second
step hides."""

Generation = Literal["ampere", "hopper", "blackwell"]
_HEIGHTS: dict[Generation, int] = {"ampere": 64, "hopper": 64, "blackwell": 128}
"""Rows of a warpgroup's tile, which the matrix unit forces."""

_ROWS: dict[Generation, tuple[int, ...]] = {"ampere": (64,), "hopper": (128,), "blackwell": (128, 256)}
"""Query rows that a tile of the forward kernel may have: of one warpgroup, of two, of either."""
_COLUMNS = (16, 32, 64, 128)


FEW = 16
"""Queries of a head, as of a step that decodes: beyond them heads do not fold, and keys of 8 bits are cast at once."""
_SWIZZLED = 32  # bytes of a row of the narrowest swizzle, of which rows of 8 bits in shared memory have a number


def generation(target: Target) -> Generation:
    """Whose kernels run there; the simulator runs Hopper's, unless a chip is named."""
    generations: dict[int, Generation] = {8: "ampere", 9: "hopper", 10: "blackwell"}
    return generations.get((target.capability or (9, 0))[0], "hopper")


def widens(target: Target, x: Shaped) -> bool:
    """Whether the kernel for few queries reads keys or values of 8 bits as they are stored."""
    return x.dtype.itemsize == 1 and x.shape[-1] % _SWIZZLED == 0 and generation(target) != "ampere"


def tile_sizes(
    spec: Spec,
    k: Shaped,
    v: Shaped,
    operands: Sequence[Shaped],
    kernel: Kernel,
    entries: Sequence[tables.Entry] | None = None,
) -> tuple[TileSizes, str]:
    """The tile sizes of one kernel and where they come from: what was the fastest on the chip, where `entries` have
    such calls, by default those of `tables/gpu.json`; else the largest whose sums fit in registers and whose tiles fit
    in shared memory.
    """
    if (given := getattr(spec.backend.settings, kernel)) is not None:
        return given, "as set"
    entries = tables.read("gpu") if entries is None else entries
    if spec.blocks is None and (fastest := _measured(spec, k, v, kernel, entries)):
        return TileSizes(**fastest.sizes), f"tuned for {fastest.name}"
    d, e = (-(-x.shape[-1] // 16) * 16 for x in (k, v))
    wide = max(d, e) > _WIDE
    if generation(spec.target) == "ampere":
        return _on_ampere(spec, operands, kernel, d, e)
    height, terms = _HEIGHTS[generation(spec.target)], terms_of(spec)
    rows, columns = _largest(kernel, height, wide)
    if height == 128 and kernel == "forward" and terms.gates:  # beside gates no more weights stay in registers
        columns = 64
    source = "the largest that fit"
    if spec.blocks is not None:
        if kernel == "forward":
            rows, columns = _asked_for(spec.blocks, spec.target)
        source = "as asked for"
    both = _widths_of_pairs(spec, operands)
    room = _room(spec.target, sum(map(_is_vector, spec.signature.axes)))
    others = [axes for axes in spec.signature.axes if not _is_pair(axes) and {*axes} & {*"hrst"}]
    if kernel == "forward" and height == 64 and not others and not terms.gates:
        room = _granted(spec.target) - _BARE  # two tiles of a bias of 128 columns fit, beside as many keys and values
    if kernel == "pairs" and parts_of(terms.mods, Relative):  # sums of tiles are staged in float32
        room -= 4 * rows * columns
    fewest, most = _STEPS[kernel]
    narrow = [x for x, y in ((d, k), (e, v)) if y.dtype.itemsize == 1]
    stored = STORED * sum(narrow) + _SCALES * len(narrow)
    fits = lambda rows, columns: _bytes(kernel, rows, columns, d, e, fewest, both) + columns * stored <= room
    if height == 128 and not fits(rows, _FEWEST):  # one warpgroup alone
        rows = height
    while columns > _FEWEST and not fits(rows, columns):
        columns //= 2
    piece = columns
    if (kernel != "forward" or height == 128) and _has_terms(terms):
        piece = min(columns, _PIECE)
    steps = fewest
    while steps < most and _bytes(kernel, rows, columns, d, e, steps + 1, both) + columns * stored <= room:
        steps += 1
    return TileSizes(rows, columns, steps, piece, height), source


def _asked_for(blocks: tuple[int, int], target: Target) -> tuple[int, int]:
    """The caller's tile.  Raises unless the forward kernel takes it."""
    here = generation(target)
    if blocks[0] not in _ROWS[here] or blocks[1] not in _COLUMNS:
        rows, columns = (" or ".join(map(str, x)) for x in (_ROWS[here], _COLUMNS))
        raise ValueError(
            f"blocks must be ({rows} query rows, {columns} key rows) for pallas_gpu on {here.capitalize()}, got"
            f" {blocks}: leave it out for sizes that fit"
        )
    return blocks


def _measured(spec: Spec, k: Shaped, v: Shaped, kernel: Kernel, entries: Sequence[tables.Entry]) -> tables.Entry | None:
    """The entry of the chip, the kernel and the width that is nearest in mask and length.

    They were found without mods, gates and operands of pairs, which take registers and shared memory, and say nothing
    of calls with those.
    """
    terms, (s, _, d) = terms_of(spec), k.shape[1:]
    of_pairs = any(_is_pair(axes) for axes in spec.signature.axes)
    if terms.mods or terms.gates or of_pairs or d != v.shape[-1] or s == 0:
        return None
    room = _room(spec.target, sum(map(_is_vector, spec.signature.axes)))

    def fits(columns: int, steps: int, rows: int, **_: int) -> bool:
        return _bytes(kernel, rows, columns, d, d, steps, []) <= room

    here = (spec.target.chip, kernel, d)
    own = [x for x in entries if (x.chip, x.direction, x.d) == here and fits(**x.sizes)]
    kind = class_of(moved(terms), s, s) if own else ""
    return min(own, key=lambda x: (x.mask != kind, abs(math.log2(x.t / s))), default=None)


def unfit_operands(target: Target, d: int, e: int, operands: Sequence[tuple[jnp.dtype, Sequence[str]]]) -> str | None:
    """Why the smallest tiles leave no room for parts of operands of such dtypes and axes, None if they do."""
    d, e = -(-d // 16) * 16, -(-e // 16) * 16
    both = [stored_as(x, pairs=True).itemsize for x, axes in operands if _is_pair(axes)]
    vectors = sum(_is_vector(axes) for _, axes in operands)
    height, wide = _HEIGHTS[generation(target)], max(d, e) > _WIDE
    room = _room(target, vectors)
    if generation(target) == "ampere":
        least = lambda kernel: (64, 1)
    else:
        least = lambda kernel: (128 if height == 128 else _largest(kernel, height, wide)[0], _STEPS[kernel][0])
    needed = lambda kernel, rows, steps: _bytes(kernel, rows, _FEWEST, d, e, steps, both)
    if all(needed(kernel, *least(kernel)) <= room for kernel in _STEPS):
        return None
    few = f"{len(both)} operands with both axes t and s"
    few += f" and {vectors} with one" if vectors > _FEW else ""
    return f"has no room in shared memory for tiles of {few} at such widths"


def _largest(kernel: Kernel, height: int, wide: bool) -> tuple[int, int]:
    """Rows and columns of the largest tiles whose sums fit in registers, or in tensor memory."""
    columns = {"forward": 64 if wide else 128, "queries": 32 if wide else 64}.get(kernel, 64)
    if height == 64:
        return 64 if wide and kernel == "keys" else 128, columns
    if kernel == "keys":  # tensor memory holds the sums of one warpgroup alone
        return 128, 32 if wide else 64
    return 128 if wide else 256, columns


def _granted(target: Target) -> int:
    """Bytes of shared memory of a block."""
    return chips.nearest_gpu(target.chip, target.capability).granted


def _room(target: Target, vectors: int) -> int:
    """Bytes of it for tiles beside so many operands along one axis."""
    return _granted(target) - _SPARE - _VECTOR * max(vectors, _FEW)


def _is_pair(axes: Sequence[str]) -> bool:
    """Whether a tile has a number of the operand for each of its pairs."""
    return {*"ts"} <= {*axes}


def _is_vector(axes: Sequence[str]) -> bool:
    """Whether a tile has a stretch of the operand: of rows, of columns or of diagonals."""
    return len({*"tsr"} & {*axes}) == 1


def _widths_of_pairs(spec: Spec, operands: Sequence[Shaped]) -> list[int]:
    """Bytes of a number of each operand with both axes, of which every tile has a part."""
    pairs = [x for x, axes in zip(operands, spec.signature.axes, strict=True) if _is_pair(axes)]
    return [stored_as(x.dtype, pairs=True).itemsize for x in pairs]


def _has_terms(terms: Any) -> bool:
    return bool(terms.mods or terms.gates or terms.mask is not None)


def _on_ampere(spec: Spec, operands: Sequence[Shaped], kernel: Kernel, d: int, e: int) -> tuple[TileSizes, str]:
    """Tiles so small that a multiprocessor holds two blocks, since one alone waits for its own products; if there are
    none, the largest of one."""
    chip = chips.nearest_gpu(spec.target.chip, spec.target.capability)
    passing = "t" if kernel == "keys" else "s"
    pairs = [(x, axes) for x, axes in zip(operands, spec.signature.axes, strict=True)]
    both = _widths_of_pairs(spec, operands)
    vectors = sum(passing in axes or len(x.shape) > len(axes) for x, axes in pairs)  # staged with each tile
    if kernel == "pairs":  # rows' numbers are staged as well, and a tile's sums along diagonals
        vectors += sum("t" in axes for _, axes in pairs) + 3
    sums = 4 * 64 if kernel == "pairs" and parts_of(terms_of(spec).mods, Relative) else 0  # bytes for each column

    def fits(columns: int, steps: int, blocks: int) -> bool:
        small = _ALIGNED * (vectors + (kernel == "keys")) + columns * sums
        return blocks * (_bytes(kernel, 64, columns, d, e, steps, both) + small + chip.reserved) <= chip.fast_memory

    terms = terms_of(spec)
    of_user = bool(parts_of((terms.mods, terms.gates), OfUser))  # a derivative of those holds many numbers at once
    held = _WIDE if kernel == "forward" else 0 if of_user else _WIDE // 2
    most = 64 if max(d, e) <= held else 32  # columns whose numbers registers hold
    tried = [(64, 2, 2), (32, 2, 2), (64, 2, 1), (32, 2, 1), (16, 2, 1), (16, 1, 1)]  # columns, steps, blocks
    columns, steps, _ = next((x for x in tried if x[0] <= most and fits(*x)), tried[-1])
    rows, source = 64, "the largest that fit"
    if spec.blocks is not None:
        if kernel == "forward":
            rows, columns = _asked_for(spec.blocks, spec.target)
        source = "as asked for"
    # A thread's registers hold what 32 columns need: two pieces of them spilled more, not less.
    piece = _PIECE if columns > 32 and kernel != "forward" and _has_terms(terms) else columns
    return TileSizes(rows, columns, steps, piece), source


def _bytes(kernel: Kernel, rows: int, columns: int, d: int, e: int, steps: int, both: list[int]) -> int:
    """Shared memory of a block's tiles, of 16-bit numbers; `both`: bytes of a number of each operand with both axes."""
    if kernel == "pairs":
        return steps * ((rows + columns) * (2 * (d + e)) + rows * columns * sum(both))
    resident = rows * (d + (e if kernel != "forward" or d != e else 0)) * 2
    return resident + steps * columns * (2 * (d + e) + rows * sum(both))
