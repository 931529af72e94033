"""How a call is cut, and an estimate of its time, for `jattn.explain`: of kernels that work as FlashAttention does.

A multiprocessor's tensor cores take 2 (d + e) operations a pair, its four schedulers issue an instruction for 32 pairs
each.  Kernels overlap the two in part.  The estimate takes them one after the other, which is what the published times
of an H100 come to: cuDNN's 3.17 ms and tokamax's 3.30 ms of [1, 16384, 16, 128] without a mask are 0.95 and 0.99 of it.
Of other chips nothing is known, and on B200, whose tensor cores run by themselves, it says too much rather than too
little.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jattn_kernels import chips
from jattn_kernels.gpu.sizes import by_eights
from jax.extend.core import Jaxpr

from jattn._terms import Terms
from jattn._terms.block_tables import Tiling
from jattn.backends.contract import Cut, Shaped, Spec
from jattn.backends.pallas.count import count
from jattn.backends.pallas_gpu.decode import Fold, fold_of, is_narrow, stored
from jattn.backends.pallas_gpu.sizes import generation, tile_sizes
from jattn.backends.pallas_gpu.terms import looked_up
from jattn.masks import Mask

_PLAIN = {8: 488 / 32, 9: 466 / 64, 10: 672 / 128}
"""By the architecture, the instructions for a score: counted in the machine code of a full tile's loop without terms, d
= 128.  On Ampere they are more, since its products are instructions of all warps."""
_ISSUED = 4 * 32  # scores that a multiprocessor issues one instruction for in a cycle


def estimate(
    spec: Spec,
    q: Shaped,
    k: Shaped,
    v: Shaped,
    operands: Sequence[Shaped],
    mask: Mask | None,
    known: bool,
    tile: tuple[int, int],
    source: str,
    fold: Fold | None = None,
) -> Cut:
    """How a call is cut in such tiles, forward; blocks are counted, and the time is estimated, where the mask is
    `known`.

    Args:
      tile: query and key rows of a tile.
      source: where the tile sizes come from.
      fold: how heads share the rows of a tile, if they do.
    """
    if not known:
        return Cut(tile, None, source)
    (b, t, h, d), (s, e) = q.shape, (v.shape[1], v.shape[-1])
    query, key = (Tiling(n, x, overhang=True) for n, x in ((t, tile[0]), (s, tile[1])))
    lines, parts = (h, 1) if fold is None else (fold.g, fold.parts)
    counted = count(mask, b, h, query, key)
    chip = chips.CHIPS.get(spec.target.chip or "")
    if not isinstance(chip, chips.Gpu) or chip.capability[0] not in _PLAIN:
        return Cut(tile, counted.blocks, source, None, counted.pairs)
    wide = lambda n: -(-n // chip.matrix_side) * chip.matrix_side
    products = 2 * (wide(d) + wide(e)) / chip.flops[q.dtype.name]  # cycles a pair
    terms, masked = _instructions(spec, operands, tile)
    issued = lambda more: (_PLAIN[chip.capability[0]] + more) / _ISSUED
    cycles = counted.full * (products + issued(terms)) + counted.partial * (products + issued(terms + masked))
    cycles *= lines / h
    strips = b * lines * query.count * parts  # each is a multiprocessor's, so of the last round some are idle
    idle = -(-strips // chip.cores) * chip.cores / strips
    seconds = cycles * tile[0] * tile[1] * idle / (chip.cores * chip.clock)
    moved = sum(math.prod(x.shape) * x.dtype.itemsize for x in (q, k, v, *operands))
    moved += b * t * h * (e * np.dtype(spec.dtype).itemsize + 4)  # out, and lse in float32
    return Cut(tile, counted.blocks, source, 1e3 * max(seconds, moved / chip.bandwidth), counted.pairs)


def _instructions(spec: Spec, operands: Sequence[Shaped], tile: tuple[int, int]) -> tuple[int, int]:
    """For each score: of mods and gates, and of the mask; one for each operation on whole tiles.

    Counted in machine code ALiBi takes 4.7, a soft cap 4.0, where this says 5 and 3.
    """
    positions = [jax.ShapeDtypeStruct(x, jnp.int32) for x in ((tile[0], 1), (1, tile[1]))]
    score = jax.ShapeDtypeStruct(tile, jnp.float32)
    tiles = [_tile_of(x, axes, tile) for x, axes in zip(operands, spec.signature.axes, strict=True)]

    def counted(part: Callable[..., Any], *arguments: Any) -> int:
        fn = lambda tiles, *rest: part(spec.signature.fill(tiles), *rest)
        return _operations(jax.make_jaxpr(fn)(tiles, *arguments, *positions).jaxpr, tile)

    def before_and_after(terms: Terms, score: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
        return terms.weights(terms.finish(score, i, j, masked=False), i, j, masked=False)

    def hidden(terms: Terms, i: jax.Array, j: jax.Array) -> jax.Array:
        return terms.attends(i, j)

    has_mask = spec.signature.fill(tiles).mask is not None
    return counted(before_and_after, score), counted(hidden) + 1 if has_mask else 0


def _tile_of(x: Shaped, axes: str, tile: tuple[int, int]) -> jax.ShapeDtypeStruct:
    along = tuple(n if a in axes else 1 for a, n in zip("ts", tile, strict=True)) if set(axes) & set("ts") else ()
    wide = jnp.promote_types(x.dtype, jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype
    return jax.ShapeDtypeStruct((*along, *x.shape[len(axes) :]), wide)


_FREE = {"broadcast_in_dim", "reshape", "copy", "squeeze"}


def _operations(jaxpr: Jaxpr, tile: tuple[int, int]) -> int:
    """Operations on arrays of a tile's shape in a jaxpr and in those inside it."""
    total = 0
    for equation in jaxpr.eqns:
        inner = [getattr(x, "jaxpr", x) for x in jax.tree.leaves(list(equation.params.values()))]
        inner = [x for x in inner if hasattr(x, "eqns")]
        if inner:
            total += sum(_operations(x, tile) for x in inner)
        elif equation.primitive.name not in _FREE:
            total += any(getattr(x.aval, "shape", None) == tile for x in equation.outvars)
    return total


def cut(spec: Spec, q: Shaped, k: Shaped, v: Shaped, operands: Sequence[Shaped], mask: Mask | None, known: bool) -> Cut:
    """How the call is cut, forward; see `jattn.backends.contract.Fused.cut`."""
    fold = fold_of(spec, q, stored(spec, k), stored(spec, v), operands)
    key, value = (jax.ShapeDtypeStruct(x.shape, spec.dtype if fold is None else x.dtype) for x in (k, v))
    sizes, source = tile_sizes(spec, key, value, operands, "forward")
    if fold is None and any(is_narrow(x) for x in (k, v)):
        source += "; keys and values of 8 bits are cast beforehand"
    if fold is not None:
        sizes = fold.sizes
        source += f"; rows are queries of {fold.group} heads, keys in parts: {fold.parts}"
    rows = q.shape[1] if fold is None else fold.rows
    if generation(spec.target) != "ampere" and (some := _no_eights(rows, k.shape[1])):
        source += f"; {some} filled up to eights by a copy, as the copy engine reads them"
    estimated = estimate(spec, q, k, v, operands, mask, known, (sizes.rows, sizes.columns), source, fold)
    return estimated._replace(gradients=_of_twin(spec, operands))


def _no_eights(rows: int, keys: int) -> str:
    """Which of them the accelerator of copies does not take as they are."""
    counts = {"queries": rows, "keys and values": keys}
    return " and ".join(name for name, n in counts.items() if by_eights(n) != n)


def _of_twin(spec: Spec, operands: Sequence[Shaped]) -> str | None:
    """Which gradients the twin computes, and why, for `explain`."""
    tables = [x for x, y in zip(operands, looked_up(spec, operands), strict=True) if y]
    learned = [str(list(x.shape)) for x in tables if jnp.issubdtype(x.dtype, jnp.floating)]
    if not learned:
        return None
    return (
        f"of what a function looks up ({' and '.join(learned)}) by blockwise, since no two blocks of a kernel may add"
        " to one number; all others by the kernels"
    )
