"""Forward passes of few queries, as in decoding: the heads of a group fold into the rows of a tile, and keys in parts.

A tile of one head would have next to no rows, and every head of a group would read the same keys.  Folded, row n is
query n // r of head n % r of the r heads that share a key head.  Where that leaves fewer blocks than a GPU has
multiprocessors, several blocks have a part of the keys each, and their results are merged by lse.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jattn_kernels import chips
from jattn_kernels.gpu.layout import OperandLayout, lay_out, with_heads_last
from jattn_kernels.gpu.lists import LineLists
from jattn_kernels.gpu.sizes import WIDENED, Lengths, TileSizes
from jattn_kernels.tiles import work
from jattn_kernels.tiles.functions import TileFunctions

from jattn._call.scales import ScaledScore, ScaledWeight
from jattn._terms import AnyArray, Operand, block_tables
from jattn._terms.block_tables import Answer, Tiling
from jattn._terms.moved import moved
from jattn._terms.reach import SeenRun
from jattn.backends.contract import Result, Shaped, Spec
from jattn.backends.pallas.terms import Words, parts_of, terms_of
from jattn.backends.pallas_gpu.call import in_run, simulator
from jattn.backends.pallas_gpu.kernels import kernels
from jattn.backends.pallas_gpu.sizes import FEW, tile_sizes, widens
from jattn.backends.pallas_gpu.terms import GpuTerms, Mixed
from jattn.masks import Mask

_TOGETHER = 4, 8  # key heads whose scales of a key are copied together: they take a sector of memory or half of one
_FEWEST = 4  # tiles of keys of a part, which take longer than its start and the merge


class Fold(NamedTuple):
    """How a call folds: its queries, heads and key heads, in how many parts its keys are seen, and tile sizes."""

    t: int
    h: int
    g: int
    parts: int
    sizes: TileSizes

    @property
    def group(self) -> int:
        """Query heads of a key head."""
        return self.h // self.g

    @property
    def rows(self) -> int:
        return self.t * self.group


def fold_of(spec: Spec, q: Shaped, k: Shaped, v: Shaped, operands: Sequence[Shaped]) -> Fold | None:
    """How the call folds; None where it has queries enough, or terms that tell rows of a tile apart by diagonals.

    Keys and values are as `stored` says.
    """
    (_, t, h, _), (_, s, g, _) = q.shape, k.shape
    if not 0 < t <= FEW or s == 0 or spec.blocks is not None or spec.backend.settings.forward is not None:
        return None
    sizes, _ = tile_sizes(spec, k, v, operands, "forward")
    terms = _FoldedTerms(spec, Fold(t, h, g, 1, sizes), s)
    own = [x for x in terms.slots if x.array not in terms.scales]
    if t * (h // g) > sizes.rows or not all(_folds(x, operands) for x in own):
        return None
    narrow = any(is_narrow(x) for x in (k, v))
    if narrow and sizes.columns < WIDENED:
        return None
    if narrow and t * (h // g) <= sizes.height:  # to widen keys takes instructions that a second warpgroup would delay
        sizes = dataclasses.replace(sizes, rows=sizes.height)
    b = max([x.shape[0] for x in (q, k, v)])
    chip = chips.nearest_gpu(spec.target.chip, spec.target.capability)
    parts = max(1, min(chip.cores // (b * g), -(-s // sizes.columns) // _FEWEST))
    return Fold(t, h, g, parts, sizes) if parts > 1 or h > g or narrow else None


def stored(spec: Spec, x: Shaped) -> jax.ShapeDtypeStruct:
    """Keys or values as the kernel for few queries reads them: of 8 bits where it widens such, else cast before."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype if widens(spec.target, x) else spec.dtype)


def is_narrow(x: Shaped) -> bool:
    """Whether an array is of 8 bits."""
    return x.dtype.itemsize == 1


def _folds(slot: Operand, operands: Sequence[Shaped]) -> bool:
    """Whether what an operand has for each head may stand along rows."""
    if isinstance(slot.array, Words):
        return len(slot.array.array) == 1
    if isinstance(slot.array, Mixed):
        return True
    looked_up = len(operands[slot.array].shape) > len(slot.axes)
    of_heads_and_keys = {*"hs"} <= {*slot.axes} and "t" not in slot.axes
    return "r" not in slot.axes and not of_heads_and_keys and not (looked_up and "h" in slot.axes)


def folded(x: jax.Array, axes: str, fold: Fold) -> tuple[jax.Array, str]:
    """An array with axes of `b h t s`, those of heads and queries folded: `[.., h, t, ..]` to `[.., g, t r, ..]`."""
    if not {*"ht"} & {*axes}:
        return x, axes
    before, after = axes.partition("h")[0] if "h" in axes else axes.partition("t")[0], "s" if "s" in axes else ""
    lead, rest = x.shape[: len(before)], x.shape[len(x.shape) - len(after) :]
    heads = (fold.g, fold.group) if "h" in axes else (1, 1)
    x = x.reshape(*lead, *heads, fold.t if "t" in axes else 1, *rest)
    x = jnp.swapaxes(x, len(lead) + 1, len(lead) + 2)  # [.., g, t, r, ..]
    x = jnp.broadcast_to(x, (*lead, heads[0], fold.t, fold.group, *rest))
    kept = heads[:1] if "h" in axes else ()
    return x.reshape(*lead, *kept, fold.rows, *rest), before + ("h" if kept else "") + "t" + after


class _FoldedTerms(GpuTerms):
    """The terms of a call whose heads are folded."""

    def __init__(self, spec: Spec, fold: Fold, s: int):
        super().__init__(spec, Lengths(fold.t, s), "t")
        self.fold, self.padded = fold, Lengths(fold.rows, s).padded
        terms = terms_of(spec)
        self.scales = [x.scale.array for kind in (ScaledScore, ScaledWeight) for x in parts_of(terms, kind)]

    def laid_out(self, slot: Operand, operands: Sequence[AnyArray]) -> tuple[jax.Array, OperandLayout]:
        if isinstance(slot.array, Words):
            return super().laid_out(slot, operands)
        if slot.array in self.scales:  # the same for all heads that share a key head
            array = jnp.asarray(operands[slot.array])
            array = array.reshape(len(array), self.fold.g, self.fold.group, -1)[:, :, 0]
            if self.fold.g in _TOGETHER:  # as the caller has them
                return with_heads_last(jnp.swapaxes(array, 1, 2).astype(jnp.float32), self.padded)
            return lay_out(array, slot.axes, self.padded, "t")
        array = slot.array.words(operands, self.lengths) if isinstance(slot.array, Mixed) else operands[slot.array]
        if array.ndim > len(slot.axes):  # it is a table that is looked up, and not folded
            return super().laid_out(slot, operands)
        return lay_out(*folded(jnp.asarray(array), slot.axes, self.fold), self.padded, "t")

    @property
    def lengths(self) -> Lengths:
        return Lengths(self.frame.t, self.frame.s)

    def functions(self) -> TileFunctions:
        """The functions of tiles whose row n is a head of query n over the number of heads that share a key head."""
        of_queries = super().functions()
        query = lambda i: jax.lax.div(i, jnp.full_like(i, self.fold.group))
        moved = lambda fn: lambda x, i, *rest: fn(x, query(i), *rest)
        weights = None if of_queries.weights is None else moved(of_queries.weights)
        return of_queries._replace(scores=moved(of_queries.scores), weights=weights)


def lists_of(mask: Mask | None, s: int, fold: Fold, in_order: bool) -> tuple[LineLists, list[AnyArray]]:
    """Which tiles each part visits: what one head of a group sees, all of its heads look at.

    `in_order`: every key that is seen comes before all others, so that no tile has to be looked for.
    """
    query, key = Tiling(fold.t, fold.sizes.rows, overhang=True), Tiling(s, fold.sizes.columns, overhang=True)
    some, every = block_tables.answers(mask, query, key)
    own = -(-key.count // fold.parts)  # how many tiles a part has
    mine = np.arange(key.count) // own == np.arange(fold.parts)[:, None]
    xp = work.numpy_of(some)
    some, every = (xp.broadcast_to(x, (*x.shape[:2], fold.parts, key.count)) & mine for x in (some, every))
    table: Any = block_tables.tabulate(Answer(some, every), heads=fold.group)
    kinds = (bool(table.full.any()), bool(table.partial.any())) if xp is np else (True, True)
    batch, heads, _, longest = table.index.shape
    kind, longest, arrays = ("order", own, table[1:]) if in_order else ("list", longest, table)
    return LineLists(kind, batch, heads, longest, kinds), [jnp.asarray(x) for x in arrays]


def decode(
    spec: Spec,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    operands: Sequence[AnyArray],
    fold: Fold,
    table: jax.Array | None = None,
    run: SeenRun | None = None,
) -> Result:
    """`forward` of folded heads; with a `table` of pages, k and v are pools.

    Where the keys that are seen are a `run`, whatever stands in the values beside it reaches nothing.
    """
    s, e = k.shape[1] * (1 if table is None else table.shape[1]), v.shape[-1]
    terms = _FoldedTerms(spec, fold, s)
    arrays, layouts = zip(*terms.arrays(operands), strict=True) if terms.slots else ((), ())
    in_order = run is not None and isinstance(run.first, int) and run.first <= 0
    lists, listed = lists_of(moved(spec.terms(operands)), s, fold, in_order)
    table = table if table is None else jnp.clip(table, 0, k.shape[0] - 1)
    rows = jnp.swapaxes(q.reshape(*q.shape[:2], fold.g, fold.group, -1), 2, 3).reshape(len(q), fold.rows, fold.g, -1)
    folded = kernels(spec.target).forward(
        rows,
        k,
        v,
        list(arrays),
        tuple(layouts),
        terms.functions(),
        lists,
        listed,
        fold.sizes,
        parts=fold.parts,
        table=table,
        edges=None if run is None else edges_of(v, table, run, s, fold.sizes.columns),
        interpret=simulator(spec.target),
    )
    unfolded = lambda x: jnp.swapaxes(x.reshape(-1, fold.t, fold.group, fold.g, *x.shape[3:]), 2, 3)
    of_heads = lambda x: unfolded(x).reshape(fold.parts, -1, fold.t, fold.h, *x.shape[3:])
    out, lse, remainder = map(of_heads, folded)
    if fold.parts == 1:
        return Result(out[0], lse[0], remainder[0])
    out, lse, remainder = merged(out.astype(jnp.float32), lse, remainder)
    return Result(out.reshape(*lse.shape, e).astype(spec.dtype), lse, remainder)


def edges_of(
    v: jax.Array, table: jax.Array | None, run: SeenRun, s: int, columns: int
) -> tuple[jax.Array, jax.Array] | None:
    """The tiles at the ends of a run of keys, `[b, n]`, and their values, `[b, n columns, g, e]`, 0 beside the run.

    None where it has no end within the keys.
    """
    ends = [x for x, at in zip(run, (0, s), strict=True) if not (isinstance(x, int) and x == at)]
    if not ends:
        return None
    b = max([len(v if table is None else table), *(x.size for x in run if not isinstance(x, int))])
    of_elements = lambda x: jnp.broadcast_to(jnp.tile(x, b // x.size) if x.size > 1 else x, b)
    tiles = jnp.stack([of_elements(jnp.asarray(x, jnp.int32)) // columns for x in ends], 1)
    j = (tiles[..., None] * columns + jnp.arange(columns, dtype=jnp.int32)).reshape(b, -1)
    own, there = jnp.arange(b)[:, None], jnp.clip(j, 0, s - 1)
    if table is None:
        values = v[own % len(v), there]
    else:
        values = v[table[own % len(table), there // v.shape[1]], there % v.shape[1]]
    return tiles, jnp.where(in_run(run, j)[..., None, None], values, jnp.zeros_like(values))


def merged(out: jax.Array, lse: jax.Array, remainder: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Results over parts of the keys, along the first axis, as one."""
    top = jnp.max(lse, axis=0)
    shares = jnp.exp(lse - jnp.where(jnp.isneginf(top), 0, top) + remainder)
    total = jnp.sum(shares, axis=0)
    seen = jnp.where(total == 0, 1, total)
    log = jnp.log(seen)
    lse = top + log
    shares = (shares / seen)[..., None]
    out = jnp.sum(jnp.where(shares == 0, 0, out * shares), axis=0)
    return out, lse, jnp.where(jnp.isfinite(lse), (top - lse) + log, 0)
