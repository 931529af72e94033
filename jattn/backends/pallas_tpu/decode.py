"""Forward passes of few queries, as in decoding: heads fold, so that keys are read where they lie."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jattn_kernels import chips
from jattn_kernels.tiles.work import numpy_of
from jattn_kernels.tpu.decode import fold as folds
from jattn_kernels.tpu.decode import forward as kernel
from jattn_kernels.tpu.decode import items
from jattn_kernels.tpu.decode.fold import Fold
from jattn_kernels.tpu.decode.items import Items
from jattn_kernels.tpu.decode.operands import FoldedLayout, lay_out
from jax.lax import Precision

from jattn._call.scales import ScaledScore, ScaledWeight
from jattn._terms import AnyArray, Offsets, Operand, block_tables
from jattn._terms.block_tables import Tiling
from jattn._terms.moved import moved
from jattn.backends.contract import Result, Shaped, Spec
from jattn.backends.pallas.terms import Packed, TileTerms, Words, parts_of, terms_of
from jattn.backends.pallas.work import MOST_SCALARS
from jattn.masks import Mask

MOST_QUERIES, MOST_ROWS = 16, 256  # of one head and of all; beyond them the products take longer than the keys
_MOST_NARROW = 8192  # columns of a chunk of 8 bits, of all cores: beyond it their work is too unequal
_WIDE_STEP = 4096  # columns of a product of 8 bits in units 256 wide: rows wait for their maximum half as often
_READ = 1.8e-6  # seconds for which the keys and values of a chunk are read: long beside what starts a step


def fold_of(spec: Spec, q: Shaped, k: Shaped, v: Shaped, table: Shaped | None = None) -> Fold | None:
    """How the heads of a call fold; None where it has too many queries, or asks for tiles of its own.

    With a `table` of pages, keys and values are pools.
    """
    (_, t, h, d), (_, s, g, e) = q.shape, v.shape
    page = 0 if table is None else s
    s = s if table is None else s * table.shape[1]
    if t > MOST_QUERIES or t * h > MOST_ROWS or spec.backend.settings.forward is not None:
        return None
    lanes = lambda n: -(-n // 128) * 128
    bytes_of_key = g * (lanes(d) * k.dtype.itemsize + lanes(e) * v.dtype.itemsize)
    chip = chips.tpu(spec.target.chip) or chips.SMALLEST_TPU
    most = int(_READ * chip.bandwidth / chip.cores / bytes_of_key) if spec.blocks is None else spec.blocks[1]
    step = folds.STEP
    if k.dtype.itemsize == 1:
        most = min(most, _MOST_NARROW // (g * chip.cores))
        step = _WIDE_STEP if chip.matrix_side == 256 else step
    fold = folds.fold_of(t, s, h, g, most, *_of_keys(spec), page, step)
    b = lines(spec, q, *((k, v) if table is None else (table,)))
    if table is not None and (
        page * g * min(k.dtype.itemsize, v.dtype.itemsize) % 32 or b * table.shape[1] > MOST_SCALARS
    ):
        return None  # a copy is of whole tiles of memory, and the kernel reads the table ahead of its grid
    if b > items.MOST_LINES or fold.chunks > items.MOST_CHUNKS or 2 * b * fold.chunks > MOST_SCALARS:
        return None
    return fold


def lines(spec: Spec, *arrays: Shaped, operands: Sequence[Shaped] = ()) -> int:
    """Batch elements of a call."""
    own = [x.shape[0] for x, axes in zip(operands, spec.signature.axes, strict=False) if "b" in axes]
    return max(*(x.shape[0] for x in arrays), *own, 1)


def _of_keys(spec: Spec) -> tuple[bool, bool]:
    """Whether some operand has numbers of keys, and whether keys or values have scales."""
    terms = FoldedTerms(spec, Fold(1, 1, 1, 1, 1, 1))
    spread = any(isinstance(x.array, Words) or set("sr") & set(x.axes) for x in terms.slots)
    return spread, any(x is not None for x in terms.scales)


class _Looked(Packed):
    """What `masks.blocks` becomes: booleans of all pairs, of which there are few."""

    def __call__(self, i: jax.Array, j: jax.Array) -> jax.Array:
        del i, j
        return self.bits


class FoldedTerms(TileTerms):
    """The terms of a call whose heads are folded."""

    packed: type[Packed] = _Looked
    fold: Fold
    offsets: Offsets
    scales: list[Any]
    """Which of the call's operands are the scales of keys and of values, None where there are none."""

    def __init__(self, spec: Spec, fold: Fold):
        terms = terms_of(spec)
        number = lambda kind: next((x.scale.array for x in parts_of(terms, kind)), None)
        self.scales = [number(ScaledScore), number(ScaledWeight)]
        super().__init__(spec, fold)
        self.fold, self.offsets = fold, terms.offsets

    def evaluated(self, terms: Any) -> Any:
        """Without scales, which the kernel knows: they are not of a head and a key but of a key head and a key."""
        others = lambda parts, kind: tuple(x for x in parts if not isinstance(x, kind))
        return dataclasses.replace(terms, mods=others(terms.mods, ScaledScore), gates=others(terms.gates, ScaledWeight))

    def laid_out(self, operands: Sequence[AnyArray]) -> tuple[list[jax.Array], tuple[FoldedLayout, ...]]:
        """Arrays for the slots, and how each of them lies."""
        pairs = [lay_out(*self._array(slot, operands), self.fold) for slot in self.slots]
        return [x for x, _ in pairs], tuple(x for _, x in pairs)

    def _array(self, slot: Operand, operands: Sequence[AnyArray]) -> tuple[jax.Array, str]:
        """An array and which of the axes `b h t s` it has."""
        if isinstance(slot.array, Words):
            return self._looked_up(slot.array, operands)
        if "r" not in slot.axes:
            return jnp.asarray(operands[slot.array]), slot.axes
        t, s = (jnp.arange(n, dtype=jnp.int32) for n in (self.fold.t, self.fold.s))
        array, axes = self.along_diagonals(slot, operands, s - t[:, None])
        return array, axes.replace("r", "ts")

    def key_scales(self, operands: Sequence[AnyArray]) -> tuple[jax.Array | None, ...]:
        """The scales of keys and of values, `[b, g, s]`, where there are any."""
        return tuple(None if x is None else self._of_key_heads(operands[x]) for x in self.scales)

    def _of_key_heads(self, array: AnyArray) -> jax.Array:
        """`[b, g, s]` of `[b, h, s]` that is the same for all heads of a group: a slice, so that XLA makes no more."""
        b, _, s = array.shape
        array = jnp.reshape(array, (b, self.fold.g, self.fold.h // self.fold.g, s))[:, :, 0]
        return array.astype(jnp.float32)

    def _looked_up(self, words: Words, operands: Sequence[AnyArray]) -> tuple[jax.Array, str]:
        """The bits of all pairs, where the call's queries and keys stand."""
        whole = lambda x: jnp.asarray(operands[x.array] if isinstance(x, Operand) else x, jnp.int32).reshape(-1, 1)
        first, lead = whole(self.offsets.first), whole(self.offsets.lead)
        i = (jnp.arange(self.fold.t, dtype=jnp.int32) + first + lead)[:, None, :, None]
        j = (jnp.arange(self.fold.s, dtype=jnp.int32) + first)[:, None, None]
        table = words.of_heads(operands)
        head = jnp.arange(table.shape[0], dtype=jnp.int32)[:, None, None]
        column = j // words.block
        bits = (table[head, i // words.block, column >> 5] >> (column & 31)) & 1 == 1
        axes = "".join(a for a, n in zip("bh", bits.shape, strict=False) if n > 1) + "ts"
        return bits.reshape(*(n for n in bits.shape[:2] if n > 1), *bits.shape[2:]), axes

    def query(self, q: jax.Array) -> jax.Array:
        """Folded, with the scale unless the scores get it."""
        scaled = q if self.exact else (q.astype(jnp.float32) * self.factor).astype(q.dtype)
        return folded(scaled)


def folded(x: jax.Array) -> jax.Array:
    """`[b, n, heads, d]` to `[b, n heads, d]`."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


def _seen_pages(mask: Mask | None, fold: Fold, b: int, table: jax.Array, pages: int) -> jax.Array:
    """The table of pages, `[b, chunks pages of a chunk]`; those that nothing is seen of are negative."""
    some, _ = seen(mask, fold, b, fold.page)
    table = jnp.where(some, jnp.clip(table, 0, pages - 1), -1)
    missing = fold.chunks * (fold.chunk // fold.page) - table.shape[1]
    return jnp.pad(table, ((0, 0), (0, missing)), constant_values=-1)


def seen(mask: Mask | None, fold: Fold, b: int, keys: int) -> tuple[AnyArray, AnyArray]:
    """Whether something is seen of each stretch of so many keys, and whether all of it is, `[b, s / keys]`."""
    query, key = Tiling(fold.t, fold.t, overhang=True), Tiling(fold.s, keys, overhang=True)
    answer = block_tables.answers(mask, query, key)
    xp = numpy_of(answer.some)
    some, every = xp.any(answer.some, (1, 2)), xp.all(answer.every & answer.some, (1, 2))
    return tuple(xp.tile(x, (b // x.shape[0], 1)) for x in (some, every))


def work_of(mask: Mask | None, fold: Fold, b: int, halves: int) -> Items:
    """The chunks that are visited."""
    return items.items_of(*seen(mask, fold, b, fold.chunk), halves)


def halves_of(chip: chips.Tpu | None) -> int:
    """Into how many parts keys are split: a core each."""
    return 1 if chip is None else chip.cores


def decode(
    spec: Spec,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    operands: Sequence[AnyArray],
    fold: Fold,
    table: jax.Array | None = None,
) -> Result:
    """`forward` with folded heads; operands of 32 bits.  With a `table` of pages, k and v are pools."""
    sides = (q, k, v) if table is None else (q, table)
    b, chip = lines(spec, *sides, operands=operands), chips.tpu(spec.target.chip)
    mask = moved(spec.terms(operands))
    pages = None if table is None else _seen_pages(mask, fold, b, table, len(k))
    terms = FoldedTerms(spec, fold)
    arrays, layouts = terms.laid_out(operands)
    functions, halves = terms.functions(), halves_of(chip)
    parts = kernel.decode(
        terms.query(q), folded(k), folded(v), arrays, layouts, functions,
        work_of(mask, fold, b, halves), fold, b, pages, terms.key_scales(operands),
        dtype=spec.dtype if halves == 1 else jnp.float32,
        precision=Precision.DEFAULT if spec.precision == Precision.DEFAULT else Precision.HIGHEST,
        memory=None if chip is None else chip.granted,
        interpret=spec.target.interpret,
    )  # fmt: skip
    out, lse, remainder = (x[0] for x in parts) if halves == 1 else _merged(*parts)
    rows = b, fold.t, fold.h
    return Result(out.reshape(*rows, -1).astype(spec.dtype), lse.reshape(rows), remainder.reshape(rows))


def _merged(out: jax.Array, lse: jax.Array, remainder: jax.Array) -> tuple[Any, Any, Any]:
    """Results over parts of the keys, along the first axis, as one."""
    top = jnp.max(lse, axis=0)
    shares = jnp.exp(lse - jnp.where(jnp.isneginf(top), 0, top) + remainder)
    total = jnp.sum(shares, axis=0)
    blind = total == 0
    log = jnp.log(jnp.where(blind, 1, total))
    merged = top + log
    shares = shares / jnp.where(blind, 1, total)
    out = jnp.sum(jnp.where(shares[..., None] == 0, 0, out * shares[..., None]), axis=0)
    return out, merged, jnp.where(jnp.isfinite(merged), (top - merged) + log, 0)
