"""Terms as the TPU kernels take them: functions of tiles, and arrays in the kernels' layout."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jattn_kernels import chips
from jattn_kernels.tpu import operands as layout
from jattn_kernels.tpu.operands import Frame
from jattn_kernels.tpu.walk import LOG2E, Terms

from jattn import _terms, gates, masks, mods
from jattn._functions import primitives
from jattn._problem import Problem, Spec
from jattn._reach import span
from jattn._shift import ShiftedMask
from jattn._target import Target
from jattn._terms import Operand, piece
from jattn.mods import Mod, Relative


def terms_of(spec: Spec) -> Any:
    """The terms with the numbers of their operands in the place of the arrays."""
    return spec.signature.fill([Operand(n, axes) for n, axes in enumerate(spec.signature.axes)])


def heads_first(x: jax.Array) -> jax.Array:
    return jnp.swapaxes(x, 1, 2)


# What some terms become


@piece
class Times(Mod):
    """score * a number: a scale that is learned."""

    scale: Any

    def __call__(self, score, i, j):
        return score * self.scale


@piece
class Strip(Mod):
    """score + a strip of numbers along diagonals: what `Relative` becomes."""

    hides = True

    strip: Any

    def __call__(self, score, i, j):
        return score + self.strip


@piece
class Packed(masks.Mask):
    """What `masks.blocks` becomes: bits that the kernel looks up, by where a tile stands and not by i and j."""

    bits: Any
    shifts: tuple[Any, ...]  # of the queries, in the masks around it

    def __call__(self, i, j):
        del i, j
        return self.bits(sum(self.shifts, start=np.int32(0)))


@dataclasses.dataclass(frozen=True)
class Words:
    """The layout of `masks.blocks` in words of 32 bits, `[h or 1, query blocks, words]`."""

    array: np.ndarray
    block: int

    @property
    def window(self) -> layout.Window:
        heads, *shape = self.array.shape
        return layout.Window("hc", 1, heads, False, layout.Cells(self.block, *shape))


LONGEST = 2**24  # queries or keys; up to that, tiles can be so large that scalar memory says which are visited
_STRIP = 16  # bytes for each relative position: a float32 of the table and one of its gradient, twice each
_MOST_WORDS = 2**16  # of a packed layout: a quarter of scalar memory


def _packed(mask: Any, shifts: tuple[Any, ...] = ()) -> Any:
    """The mask with its layouts packed, as far as masks around them are known to say where their queries stand."""
    if isinstance(mask, masks.Blocks):
        return _pack(mask, shifts)
    if isinstance(mask, ShiftedMask):
        return dataclasses.replace(mask, mask=_packed(mask.mask, (*shifts, mask.start)))
    if isinstance(mask, (masks.And, masks.Or)):
        return dataclasses.replace(mask, left=_packed(mask.left, shifts), right=_packed(mask.right, shifts))
    return dataclasses.replace(mask, mask=_packed(mask.mask, shifts)) if isinstance(mask, masks.Not) else mask


def _pack(mask: masks.Blocks, shifts: tuple[Any, ...]) -> Packed:
    bits = mask.layout.array.reshape(-1, *mask.layout.array.shape[-2:])
    bits = np.pad(bits, ((0, 0), (0, 0), (0, -bits.shape[-1] % 32)))
    words = np.packbits(bits, axis=-1, bitorder="little").view("<i4").astype(np.int32)
    return Packed(Operand(Words(words, mask.block), "hc"), shifts)


def _words(layout: np.ndarray) -> int:
    """How many a layout takes."""
    return layout.size // layout.shape[-1] * -(-layout.shape[-1] // 32)


def _leaf(kind: type) -> Any:
    return lambda x: isinstance(x, (kind, Operand))


def _replace(term: Any, kind: type, new: Any) -> Any:
    """The term with its parts of one kind replaced."""
    return jax.tree.map(lambda x: new(x) if isinstance(x, kind) else x, term, is_leaf=_leaf(kind))


def parts_of(term: Any, kind: type) -> list[Any]:
    return [x for x in jax.tree.leaves(term, is_leaf=_leaf(kind)) if isinstance(x, kind)]


# What cannot be evaluated in a kernel


def unfit(problem: Problem, target: Target) -> str | None:
    """Why the terms of a problem cannot be evaluated inside a kernel, None if they can."""
    return _too_long(problem, target) or _unfit_terms(problem)


def _too_long(problem: Problem, target: Target) -> str | None:
    t, s = problem.sizes["t"], problem.sizes["s"]
    if max(t, s) > LONGEST:
        return f"takes up to {LONGEST} queries and keys, not {max(t, s)}: scalar memory holds no more tiles"
    most = (chips.tpu(target.chip) or chips.SMALLEST_TPU).granted // 3 // _STRIP
    if any(isinstance(m, Relative) for m in problem.mods) and t + s > most:
        return (
            f"takes relative positions of up to {most} queries and keys together, not {t + s}: fast memory has them all"
        )
    return None


def _unfit_terms(problem: Problem) -> str | None:
    terms = problem.mods, problem.mask, problem.gates
    for x in parts_of(terms, masks.Blocks):
        if _words(x.layout.array) > _MOST_WORDS:
            return f"takes block layouts of up to {32 * _MOST_WORDS} entries, not {x.layout.array.size}"
    if parts_of(_packed(problem.mask), masks.Blocks):
        return "takes masks.blocks combined with & | ~ alone, not inside another mask"
    tables = [m.table for m in problem.mods if isinstance(m, Relative)]
    for x in parts_of(terms, Operand):
        if x.array.ndim > len(x.axes) and not any(x is y for y in tables):
            return f"takes operands with axes b h t s alone, not {list(x.array.shape)} with axes {x.axes!r}"
        if jax.dtypes.canonicalize_dtype(x.array.dtype) in (jnp.int64, jnp.uint64):  # x64: two ids could become one
            return f"takes integers of 32 bits, not {x.array.dtype}"
    for kind, first in ((mods.Function, (_TILE,)), (masks.Function, ()), (gates.Function, (_TILE,))):
        for x in parts_of(terms, kind):
            operands = tuple((o.array.dtype, o.axes) for o in (*x.held, *x.operands))
            reason = _unfit_function(x.closure, len(x.held), first, operands)
            if reason is not None:
                return reason
    return None


_TILE = (128, 128)
_LOOK_UPS = {"gather", "scatter", "scatter-add", "sort", "dynamic_slice", "dot_general", "while", "scan", "cumsum"}


@functools.lru_cache(maxsize=256)
def _unfit_function(closure: Any, held: int, first: tuple[Any, ...], operands: tuple[Any, ...]) -> str | None:
    wide = lambda dtype: jnp.float32 if jnp.issubdtype(dtype, jnp.floating) else dtype
    along = lambda axes: tuple(n if a in axes else 1 for a, n in zip("ts", _TILE, strict=True))
    shape = lambda axes: along(axes) if set("ts") & set(axes) else ()
    arguments = [jax.ShapeDtypeStruct(x, jnp.float32) for x in first]
    arguments += [jax.ShapeDtypeStruct(x, jnp.int32) for x in ((_TILE[0], 1), (1, _TILE[1]))]
    tiles = [jax.ShapeDtypeStruct(shape(axes), wide(dtype)) for dtype, axes in operands]
    traced = jax.make_jaxpr(lambda held, *rest: closure.build(held)(*rest))(tiles[:held], *arguments, *tiles[held:])
    if any(jnp.ndim(x) for x in traced.consts):
        return "takes functions without arrays of their own: give the array as a jattn.operand"
    found = primitives(traced.jaxpr) & _LOOK_UPS
    return f"takes elementwise functions, not {' or '.join(sorted(found))}" if found else None


# Both directions


class Pieces:
    """The terms of a call for one direction: arrays in the kernels' layout, as a function of the operands."""

    def __init__(self, spec: Spec, frame: Frame, upright: bool):
        terms = terms_of(spec)
        scale = terms.compare.scale
        first = (Times(scale),) if isinstance(scale, Operand) else ()
        self.scale: float = 1.0 if isinstance(scale, Operand) else scale
        self.strips = {m.table.array: m for m in terms.mods if isinstance(m, Relative)}
        as_strip = lambda m: Strip(Operand(m.table.array, m.table.axes + "r"))
        terms = dataclasses.replace(
            terms,
            compare=None,
            mods=(*first, *_replace(terms.mods, Relative, as_strip)),
            mask=_packed(terms.mask),
        )
        self.slots, self.tree = jax.tree.flatten(terms, is_leaf=lambda x: isinstance(x, Operand))
        self.has_mods, self.has_gates, self.mask = bool(terms.mods), bool(terms.gates), terms.mask
        self.frame, self.upright = frame, upright
        self.span = span(terms.mask)
        # float32 says exactly how large scores are, and mods may make them as large as they like
        self.natural = self.has_mods or spec.dtype == jnp.float32
        # a factor of the query costs nothing but a rounding to its dtype, as in every kernel; asked for more, or before
        # mods, it multiplies the scores
        self.exact = self.has_mods or spec.precision == jax.lax.Precision.HIGHEST

    def learned(self, learn: Any) -> tuple[bool, ...]:
        """Which arrays get gradients, from which operands do."""
        return tuple(not isinstance(x.array, Words) and learn[x.array] for x in self.slots)

    def arrays(self, operands: Any) -> list[jax.Array]:
        """Arrays for the slots, differentiable."""
        return [self._array(slot, operands)[0] for slot in self.slots]

    def windows(self, operands: Any) -> tuple[layout.Window, ...]:
        found = []
        jax.eval_shape(lambda x: found.extend(self._array(slot, x)[1] for slot in self.slots), operands)
        return tuple(found)

    def _array(self, slot: Operand, operands: Any) -> tuple[jax.Array, layout.Window]:
        if isinstance(slot.array, Words):
            return jnp.asarray(slot.array.array.reshape(-1)), slot.array.window
        array, axes = operands[slot.array], slot.axes
        if "r" in axes:
            padded = self.frame.padded
            lane = jnp.arange(sum(padded.values()), dtype=jnp.int32)
            relative = lane - padded["t"] if self.upright else padded["s"] - lane  # j - i
            term = self.strips[slot.array]
            term = dataclasses.replace(term, held=tuple(operands[x.array] for x in term.held))
            array = jnp.take(_terms.wide(array), term.bucket(relative), axis=-1, mode="clip")
        return layout.lay_out(array, axes, self.frame)

    def terms(self) -> Terms:
        def scores(score, i, j, masked, live, parts):
            return jax.tree.unflatten(self.tree, parts).finish(score, i, j, masked, live)

        def weights(weight, i, j, parts):
            return jax.tree.unflatten(self.tree, parts).weights(weight, i, j)

        def sees(i, j, parts):
            return jax.tree.unflatten(self.tree, parts).mask(i, j)

        lengths = self.frame.t, self.frame.s
        return Terms(
            scores,
            weights if self.has_gates else None,
            natural=self.natural,
            scale=self.scale * self._units if self.exact else None,
            reach=self.span.reach(*lengths),
            sees=None if self.span.exact else sees,
            blind=self.span.blind(*lengths),
        )

    @property
    def blind(self) -> bool:
        """Whether a query may see nothing: because of the mask, or because a mod makes all its scores -inf."""
        return self.has_mods or self.span.blind(self.frame.t, self.frame.s)

    @property
    def _units(self) -> float:
        return 1.0 if self.natural else LOG2E

    def query(self, q: jax.Array) -> jax.Array:
        """Heads first, with the scale unless the scores get it."""
        if not self.exact:
            q = (q.astype(jnp.float32) * (self.scale * self._units)).astype(q.dtype)
        return heads_first(q)
