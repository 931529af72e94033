"""Terms as kernels take them: functions of a tile, and a slot for each of their arrays."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jattn_kernels.tiles.cells import Cells
from jattn_kernels.tiles.functions import LOG2E, TileFunctions
from jattn_kernels.tiles.work import HasLengths

from jattn import _terms, masks
from jattn._terms import AnyArray, FieldValue, Offsets, Operand, finite, term
from jattn._terms.moved import moved
from jattn._terms.reach import Span, span
from jattn.backends.batches import spread
from jattn.backends.contract import Spec
from jattn.gates import Gate
from jattn.mods import Mod, Relative

_HERE = Offsets()


def terms_of(spec: Spec) -> Any:
    """The terms with the numbers of their operands in the place of the arrays."""
    return spec.signature.fill([Operand(n, axes) for n, axes in enumerate(spec.signature.axes)])


def scales_scores(spec: Spec) -> bool:
    """Whether the scale multiplies the products, and not the query before them.

    A factor of the query costs nothing but a rounding to its dtype, as in every kernel; asked for more, or before mods,
    it multiplies the scores.
    """
    terms = terms_of(spec)
    learned = isinstance(terms.compare.scale, Operand)
    return bool(terms.mods) or learned or spec.precision == jax.lax.Precision.HIGHEST


@term
class Times(Mod):
    """score * a number: a scale that is learned."""

    finite = affine = True

    scale: FieldValue

    def __call__(self, score: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
        return score * self.scale


@term
class DiagonalBias(Mod):
    """score + a strip of numbers along diagonals: what `Relative` becomes."""

    hides = True
    finite = affine = True

    strip: FieldValue
    lead: FieldValue  # how far the first query stands beyond the first key: the strip is not by terms' positions

    def __call__(self, score: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
        return score + self.strip


@term
class Packed(masks.Mask):
    """What `masks.blocks` becomes: bits that the kernel looks up, by where a tile stands and not by i and j."""

    bits: FieldValue
    offsets: Offsets

    def __call__(self, i: jax.Array, j: jax.Array) -> jax.Array:
        del i, j
        return self.bits(*self.offsets.at(0, 0))


@dataclasses.dataclass(frozen=True)
class Words:
    """The layout of `masks.blocks` in words of 32 bits, `[h or 1, query blocks, words]`."""

    array: np.ndarray
    block: int
    head: Any = None
    """The number of the operand that says which heads a call has; None where they are all there are."""

    def of_heads(self, operands: Sequence[AnyArray]) -> jax.Array:
        """The words of the call's heads."""
        words = jnp.asarray(self.array)
        return words if self.head is None else jnp.take(words, operands[self.head], axis=0, mode="clip")

    @property
    def cells(self) -> Cells:
        """How a pair finds its bit in the words."""
        _, rows, words = self.array.shape
        return Cells(self.block, rows, words)


def packed(mask: masks.Mask | None, kind: type[Packed] = Packed, offsets: Offsets = _HERE) -> Any:
    """The mask with its layouts packed, as far as masks around them are known to leave positions as they are."""
    if isinstance(mask, masks.Blocks):
        return _pack(mask, kind, offsets)
    if isinstance(mask, (masks.And, masks.Or)):
        return dataclasses.replace(mask, left=packed(mask.left, kind, offsets), right=packed(mask.right, kind, offsets))
    return dataclasses.replace(mask, mask=packed(mask.mask, kind, offsets)) if isinstance(mask, masks.Not) else mask


def _pack(mask: masks.Blocks, kind: type[Packed], offsets: Offsets) -> Packed:
    bits = mask.layout.array.reshape(-1, *mask.layout.array.shape[-2:])
    bits = np.pad(bits, ((0, 0), (0, 0), (0, -bits.shape[-1] % 32)))
    words = np.packbits(bits, axis=-1, bitorder="little").view("<i4").astype(np.int32)
    return kind(Operand(Words(words, mask.block, mask.head.array if mask.picked else None), "hc"), offsets)


def words_of(layout: np.ndarray) -> int:
    """How many words of 32 bits a layout takes."""
    return layout.size // layout.shape[-1] * -(-layout.shape[-1] // 32)


def _leaf(kind: type) -> Any:
    return lambda x: isinstance(x, (kind, Operand))


def replaced(term: object, kind: type, new: Callable[[Any], object]) -> Any:
    """The term with its parts of one kind replaced."""
    return jax.tree.map(lambda x: new(x) if isinstance(x, kind) else x, term, is_leaf=_leaf(kind))


def parts_of(term: object, kind: type) -> list[Any]:
    """The parts of one kind in a term, however deep."""
    return [x for x in jax.tree.leaves(term, is_leaf=_leaf(kind)) if isinstance(x, kind)]


def of_32_bits(x: AnyArray) -> AnyArray:
    """An operand as a kernel takes it: kernels have no 64 bits, even where the code around has."""
    narrow = {"float64": jnp.float32, "int64": jnp.int32, "uint64": jnp.uint32}
    return x.astype(narrow[x.dtype.name]) if x.dtype.name in narrow else x


def of_rows_that_see(x: jax.Array, lse: jax.Array) -> jax.Array:
    """`[b, t, h, ..]` with 0 in the place of rows that see nothing."""
    blind = jnp.isneginf(lse).reshape(lse.shape + (1,) * (x.ndim - 3))
    x = spread(x, lse.shape[0])
    return jnp.where(blind, jnp.zeros_like(x), x)


class TileTerms:
    """The terms of a call as functions of a tile, with a slot for each of their arrays.

    Attributes:
      slots: for each array that a kernel takes, the number of the operand that it comes from, or what makes it, and its
        axes; `r` stands for `t s` where an array varies with j - i alone, `c` where it is the same within cells.
      span: the keys that a query may see, as far as windows say.
      natural: scores are natural logarithms, of any size; else log2(e) is a factor of them.
    """

    scale: float
    relative: dict[int, Relative]
    slots: list[Operand]
    tree: Any  # jax.tree_util.PyTreeDef, which is no type to type checkers
    has_mods: bool
    has_gates: bool
    finite: bool
    frame: HasLengths
    span: Span
    lead: FieldValue  # how far the first query stands beyond the first key, or the number of that operand
    natural: bool
    exact: bool
    along_diagonal: Any = DiagonalBias
    """What `Relative` becomes in this family's kernels."""
    packed: type[Packed] = Packed
    """What `masks.blocks` becomes."""

    def __init__(self, spec: Spec, frame: HasLengths):
        terms = self.evaluated(terms_of(spec))
        scale = terms.compare.scale
        first = (Times(scale),) if isinstance(scale, Operand) else ()
        self.scale = 1.0 if isinstance(scale, Operand) else scale
        self.relative = {m.table.array: m for m in terms.mods if isinstance(m, Relative)}
        lead = terms.offsets.lead
        as_diagonals = lambda m: self.along_diagonal(Operand(m.table.array, m.table.axes + "r"), lead)
        terms = dataclasses.replace(
            terms,
            compare=None,
            mods=(*first, *replaced(terms.mods, Relative, as_diagonals)),
            mask=packed(terms.mask, self.packed, terms.offsets),
            gates=tuple(self.gate(x, terms.offsets) for x in terms.gates),
        )
        self.slots, self.tree = jax.tree.flatten(terms, is_leaf=lambda x: isinstance(x, Operand))
        self.has_mods, self.has_gates = bool(terms.mods), bool(terms.gates)
        self.finite = finite(terms.mods)
        self.frame, self.span, self.lead = frame, span(moved(terms_of(spec))), lead
        # float32 says exactly how large scores are, and mods may make them as large as they like
        self.natural = self.has_mods or spec.dtype == jnp.float32
        self.exact = scales_scores(spec)

    @property
    def factor(self) -> float:
        """What the product of a query and a key is multiplied with: the score's scale, in the units of the scores."""
        return self.scale * (1.0 if self.natural else LOG2E)

    @property
    def blind(self) -> bool:
        """Whether a query may see nothing: because of the mask, or because a mod makes all its scores -inf."""
        return self.has_mods or self.span.blind(self.frame.t, self.frame.s)

    def active(self, operands: Sequence[bool]) -> tuple[bool, ...]:
        """Which slots get gradients, from which operands do."""
        return tuple(isinstance(x.array, int) and operands[x.array] for x in self.slots)

    def evaluated(self, terms: Any) -> Any:
        """What of the call's terms this family's kernels evaluate as terms."""
        return terms

    def gate(self, gate: Gate, offsets: Offsets) -> Gate:
        """What a gate of the call, which may be part of no other, becomes in this family's kernels."""
        del offsets
        return gate

    def along_diagonals(
        self,
        slot: Operand,
        operands: Sequence[AnyArray],
        relative: jax.Array,
        columns: Callable[[jax.Array, jax.Array], jax.Array] = lambda table, at: table[..., at],
    ) -> tuple[jax.Array, str]:
        """The table of relative positions that a slot comes from, looked up at j - i of the call's own positions; and
        the axes that it then has; `columns`: table `[.., h, n]` and columns inside it to what stands there."""
        term = self.relative[slot.array]
        term = dataclasses.replace(term, held=tuple(operands[x.array] for x in term.held))
        table = _terms.wide(operands[slot.array])
        inside = lambda at: jnp.clip(at, 0, table.shape[-1] - 1)
        look_up = lambda table, lead: columns(table, inside(term.bucket(relative - lead)))
        if not isinstance(self.lead, Operand):
            return look_up(table, self.lead), slot.axes
        lead = operands[self.lead.array]
        if "b" not in self.lead.axes:
            return look_up(table, lead), slot.axes
        if "b" not in slot.axes:
            return jax.vmap(look_up, (None, 0))(table, lead), f"b{slot.axes}"
        longest = math.lcm(len(table), len(lead))  # of batch elements: each uses entry b % length
        table, lead = (jnp.tile(x, (longest // len(x), *(1,) * (x.ndim - 1))) for x in (table, lead))
        return jax.vmap(look_up)(table, lead), slot.axes

    def functions(self) -> TileFunctions:
        """What a kernel evaluates."""

        def scores(
            score: jax.Array, i: jax.Array, j: jax.Array, masked: bool, live: bool | jax.Array, parts: Sequence[Any]
        ):
            return jax.tree.unflatten(self.tree, parts).finish(score, i, j, masked, live)

        def weights(weight: jax.Array, i: jax.Array, j: jax.Array, masked: bool, parts: Sequence[Any]):
            return jax.tree.unflatten(self.tree, parts).weights(weight, i, j, masked)

        def sees(i: jax.Array, j: jax.Array, parts: Sequence[Any]):
            return jax.tree.unflatten(self.tree, parts).attends(i, j)

        lengths = self.frame.t, self.frame.s
        return TileFunctions(
            scores,
            weights if self.has_gates else None,
            natural=self.natural,
            scale=self.factor if self.exact else None,
            reach=self.span.reach(*lengths),
            sees=None if self.span.exact else sees,
            blind=self.span.blind(*lengths),
            finite=self.finite,
        )
