"""The Pallas kernels for TPU as a backend: arrays into their layout, terms into tile functions, masks into work lists."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jattn_kernels import tables
from jattn_kernels.tpu import operands as layout
from jattn_kernels.tpu import work
from jattn_kernels.tpu.backward import backward as _backward
from jattn_kernels.tpu.forward import forward as _forward
from jattn_kernels.tpu.operands import Frame
from jattn_kernels.tpu.walk import LOG2E, Terms
from jattn_kernels.tpu.work import Sizes

from jattn import _blocks, _terms, gates, masks, mods
from jattn._explain import Cut
from jattn._problem import Problem, Spec
from jattn._terms import Operand, piece
from jattn.backends import blockwise
from jattn.mods import Mod, Relative

tangent = blockwise.tangent  # plain XLA, tiled

MIB = 2**20
MEMORY = {"v4": 16 * MIB, "v5e": 100 * MIB, "v5p": 60 * MIB, "v6e": 100 * MIB, "tpu7x": 56 * MIB}
"""Fast memory that a kernel may use: what each chip's compiler grants, less what it keeps for itself."""
_PATTERNS = 4  # more kinds of partial tiles than this are worked off as masked throughout: each is code of its own
_SCALARS = 2**17  # entries of a work list: scalar memory is small


# Terms as the kernels take them


@piece
class Times(Mod):
    """score * a number: a scale that is learned."""

    scale: Any

    def __call__(self, score, i, j):
        return score * self.scale


@piece
class Strip(Mod):
    """score + a strip of numbers along diagonals: what `Relative` becomes."""

    strip: Any

    def __call__(self, score, i, j):
        return score + self.strip


@piece
class Packed(masks.Mask):
    """`masks.blocks` by comparisons and shifts alone: kernels have no look-up.  Words of 32 bits hold the layout."""

    words: tuple[tuple[tuple[int, ...], ...], ...]  # [h or 1][query blocks][words]
    block: int
    head: Any

    def __call__(self, i, j):
        column = j // self.block
        found = False
        for n in range(len(self.words[0][0])):
            word = jnp.zeros(i.shape, jnp.int32)
            for h, layout in enumerate(self.words):
                for r, line in enumerate(layout):
                    here = i // self.block == r
                    word = jnp.where(here if self.head is None else here & (self.head == h), line[n], word)
            bit = (word >> (column & 31)) & 1
            found = found | ((bit == 1) & (column >> 5 == n))
        return found


_MOST_WORDS = 2048  # of a packed layout: each costs a comparison on the rows of a tile


def _pack(mask: masks.Blocks) -> Packed:
    layout = mask.layout.array.reshape(-1, *mask.layout.array.shape[-2:])
    bits = np.pad(layout, ((0, 0), (0, 0), (0, -layout.shape[-1] % 32)))
    words = np.packbits(bits, axis=-1, bitorder="little").view("<i4")
    return Packed(tuple(tuple(map(tuple, x)) for x in words.tolist()), mask.block, mask.head)


def _leaf(kind: type) -> Any:
    return lambda x: isinstance(x, (kind, Operand))


def _replace(term: Any, kind: type, new: Any) -> Any:
    """The term with its parts of one kind replaced."""
    return jax.tree.map(lambda x: new(x) if isinstance(x, kind) else x, term, is_leaf=_leaf(kind))


def _parts(term: Any, kind: type) -> list[Any]:
    return [x for x in jax.tree.leaves(term, is_leaf=_leaf(kind)) if isinstance(x, kind)]


def unfit(problem: Problem) -> str | None:
    """Why the terms of a problem cannot be evaluated inside a kernel, None if they can."""
    terms = problem.mods, problem.mask, problem.gates
    for x in _parts(terms, masks.Blocks):
        if x.layout.array.size > 32 * _MOST_WORDS:
            return f"takes block layouts of up to {32 * _MOST_WORDS} entries, not {x.layout.array.size}"
    tables = [m.table for m in problem.mods if isinstance(m, Relative)]
    for x in _parts(terms, Operand):
        if x.array.ndim > len(x.axes) and not any(x is y for y in tables):
            return f"takes operands with axes b h t s alone, not {list(x.array.shape)} with axes {x.axes!r}"
    for kind, first in ((mods.Function, (_TILE,)), (masks.Function, ()), (gates.Function, (_TILE,))):
        for x in _parts(terms, kind):
            reason = _unfit_function(x.fn, first, tuple((o.array.dtype, o.axes) for o in x.operands))
            if reason is not None:
                return reason
    return None


_TILE = (128, 128)
_LOOK_UPS = {"gather", "scatter", "scatter-add", "sort", "dynamic_slice", "dot_general", "while", "scan", "cumsum"}


def _primitives(jaxpr: Any) -> set[str]:
    """Names of the primitives in a jaxpr and in those inside it."""
    names = {equation.primitive.name for equation in jaxpr.eqns}
    inner = [x for equation in jaxpr.eqns for x in jax.tree.leaves(list(equation.params.values()))]
    return names.union(*(_primitives(getattr(x, "jaxpr", x)) for x in inner if hasattr(x, "jaxpr") or hasattr(x, "eqns")))


@functools.lru_cache(maxsize=256)
def _unfit_function(fn: Any, first: tuple[Any, ...], operands: tuple[Any, ...]) -> str | None:
    wide = lambda dtype: jnp.float32 if jnp.issubdtype(dtype, jnp.floating) else dtype
    shape = lambda axes: tuple(n if a in axes else 1 for a, n in zip("ts", _TILE, strict=True)) if set("ts") & set(axes) else ()
    arguments = [jax.ShapeDtypeStruct(x, jnp.float32) for x in first]
    arguments += [jax.ShapeDtypeStruct(x, jnp.int32) for x in ((_TILE[0], 1), (1, _TILE[1]))]
    arguments += [jax.ShapeDtypeStruct(shape(axes), wide(dtype)) for dtype, axes in operands]
    traced = jax.make_jaxpr(fn)(*arguments)
    if any(jnp.ndim(x) for x in traced.consts):
        return "takes functions without arrays of their own: give the array as a jattn.operand"
    found = _primitives(traced.jaxpr) & _LOOK_UPS
    return f"takes elementwise functions, not {' or '.join(sorted(found))}" if found else None


class _Pieces:
    """The terms of a call for one direction: arrays in the kernels' layout, as a function of the operands."""

    def __init__(self, spec: Spec, frame: Frame, upright: bool):
        slots = [Operand(n, axes) for n, axes in enumerate(spec.signature.axes)]
        terms = spec.signature.fill(slots)
        scale = terms.compare.scale
        first = (Times(scale),) if isinstance(scale, Operand) else ()
        self.scale = 1.0 if first else scale
        self.strips = [(m.table.array, m.bucket) for m in terms.mods if isinstance(m, Relative)]
        as_strip = lambda m: Strip(Operand(m.table.array, m.table.axes + "r"))
        terms = dataclasses.replace(
            terms, compare=None, mods=(*first, *_replace(terms.mods, Relative, as_strip)), mask=_replace(terms.mask, masks.Blocks, _pack),
        )  # fmt: skip
        self.slots, self.tree = jax.tree.flatten(terms, is_leaf=lambda x: isinstance(x, Operand))
        self.has_mods, self.has_gates, self.mask = bool(terms.mods), bool(terms.gates), terms.mask
        self.frame, self.upright = frame, upright
        # a factor of the query costs nothing but a rounding to its dtype, as in every kernel; asked for more, or before
        # mods, it multiplies the scores
        self.exact = self.has_mods or spec.precision == jax.lax.Precision.HIGHEST

    def arrays(self, operands: Any) -> list[jax.Array]:
        """Arrays for the slots, differentiable."""
        return [self._array(slot, operands)[0] for slot in self.slots]

    def windows(self, operands: Any) -> tuple[layout.Window, ...]:
        found = []
        jax.eval_shape(lambda x: found.extend(self._array(slot, x)[1] for slot in self.slots), operands)
        return tuple(found)

    def _array(self, slot: Operand, operands: Any) -> tuple[jax.Array, layout.Window]:
        array, axes = operands[slot.array], slot.axes
        if "r" in axes:
            padded = self.frame.padded
            lane = jnp.arange(sum(padded.values()), dtype=jnp.int32)
            relative = lane - padded["t"] if self.upright else padded["s"] - lane  # j - i
            bucket = next(bucket for n, bucket in self.strips if n == slot.array)
            array = jnp.take(_terms.wide(array), bucket(relative), axis=-1, mode="clip")
        return layout.lay_out(array, axes, self.frame)

    def terms(self) -> Terms:
        def scores(score, i, j, masked, live, parts):
            return jax.tree.unflatten(self.tree, parts).finish(score, i, j, masked, live)

        def weights(weight, i, j, parts):
            return jax.tree.unflatten(self.tree, parts).weights(weight, i, j)

        scale = self.scale * self._units if self.exact else None
        return Terms(scores, weights if self.has_gates else None, self.has_mods, scale)

    @property
    def _units(self) -> float:
        return 1.0 if self.has_mods else LOG2E

    def query(self, q: jax.Array) -> jax.Array:
        """Heads first, with the scale unless the scores get it."""
        if not self.exact:
            q = (q.astype(jnp.float32) * (self.scale * self._units)).astype(q.dtype)
        return heads_first(q)


# Work


def _down(n: int, most: int) -> int:
    """The number of lanes that hold n, at most `most`."""
    return min(most, -(-n // work.LANES) * work.LANES)


def _case(spec: Spec, upright: bool) -> tuple[str, str]:
    """Mask class and pass, as the tables name them."""
    mask = spec.signature.fill([Operand(n, axes) for n, axes in enumerate(spec.signature.axes)]).mask
    window = any(isinstance(x.left, int) for x in _parts(mask, masks.Window))
    return "full" if mask is None else "window" if window else "causal", "forward" if upright else "backward"


def tile_sizes(spec: Spec, q: Any, k: Any, v: Any, upright: bool) -> tuple[Sizes, str]:
    """The tile sizes of a call and where they come from."""
    t, s, d = q.shape[1], k.shape[1], max(q.shape[-1], v.shape[-1])
    found = tables.find(tables.entries(), spec.target.chip, d, max(t, s), *_case(spec, upright))
    sizes, source = Sizes(**found.entry.sizes), str(found)
    query, key, chunk = sizes.query, sizes.key, sizes.chunk
    if spec.blocks is not None:
        (query, key), source = spec.blocks, "as asked for"
    if any("t" in axes and "s" in axes for axes in spec.signature.axes):  # their tiles stand in fast memory too
        query, key, chunk = min(query, 512), min(key, 512), 2048
    query, key = (min(x, -(-n // work.LANES) * work.LANES) for x, n in ((query, t), (key, s)))
    query, key = (-(-x // work.LANES) * work.LANES for x in (query, key))
    most = chunk * found.entry.d * 2 // (d * max(q.dtype.itemsize, k.dtype.itemsize, v.dtype.itemsize))
    chunk = max(key, min(chunk, most, -(-s // key) * key) // key * key)
    rows = sizes.height if query % sizes.height == 0 else 0
    return dataclasses.replace(sizes, query=query, key=key, step=math.gcd(key, sizes.step), chunk=chunk, rows=rows), source


def work_of(mask: Any, frame: Frame, upright: bool) -> work.Work:
    if not jax.tree.leaves(mask):
        return static_work(mask, frame, upright)
    query, key = (_blocks.Tiling(n, x, overhang=True) for n, x in _lengths(frame))
    some, every = (jnp.asarray(x) for x in _blocks.answers(mask, query, key))
    for axis in (1, 0):  # lists for single heads and batch elements only as far as scalar memory goes
        if some.size > _SCALARS:
            some, every = some.any(axis, keepdims=True), every.all(axis, keepdims=True)
    batch, heads = some.shape[:2]
    some, every = (x.reshape(-1, *x.shape[2:]) for x in (some, every & some))
    found = work.visits(some, every, jnp.int32(0), frame.sizes, upright)
    return work.Work(*found, batch, heads, (frame.sizes.whole(True, upright),))


def _lengths(frame: Frame) -> tuple[tuple[int, int], tuple[int, int]]:
    return (frame.t, frame.sizes.query), (frame.s, frame.sizes.key)


@functools.lru_cache(maxsize=256)
def static_work(mask: Any, frame: Frame, upright: bool) -> work.Work:
    sizes = frame.sizes
    grain = math.gcd(math.gcd(sizes.query, sizes.key), sizes.grain)
    fine = _blocks.answers(mask, *(_blocks.Tiling(n, grain, overhang=True) for n in (frame.t, frame.s)))
    batch, heads = fine.some.shape[:2]
    nq, nk = frame.query_tiles, frame.key_tiles
    rows, columns = sizes.query // grain, sizes.key // grain
    kind = np.where(fine.every & fine.some, 2, np.where(fine.some, 1, 0)).reshape(batch * heads, *fine.some.shape[2:])
    kind = np.pad(kind, ((0, 0), (0, nq * rows - kind.shape[1]), (0, nk * columns - kind.shape[2])))
    kind = kind.reshape(-1, nq, rows, nk, columns).swapaxes(2, 3)  # [n, query tiles, key tiles, rows, columns]
    inside = np.arange(nq * rows).reshape(nq, 1, rows, 1) * grain < frame.t  # rows past the end do not count
    some, every = (kind > 0).any((-2, -1)), ((kind == 2) | ~inside).all((-2, -1))
    patterns: dict[Any, int] = {}
    number = np.zeros(some.shape, np.int32)
    for place in np.argwhere(some & ~every):
        cells = kind[tuple(place)]
        found = _pattern(cells, grain) if upright else _runs(_pattern(cells.T, grain))
        number[tuple(place)] = patterns.setdefault(found, len(patterns))
    if len(patterns) > _PATTERNS:
        patterns, number = {sizes.whole(True, upright): 0}, np.zeros_like(number)
    return work.Work(*work.visits(some, every, number, sizes, upright, np), batch, heads, tuple(patterns))


def _pattern(kind: np.ndarray, grain: int) -> work.Pattern:
    """Strips, each with runs of full and of partial cells; strips alike and side by side are one."""
    steps: list[work.Step] = []
    for n, line in enumerate(kind):
        edges = [0, *(np.flatnonzero(np.diff(line)) + 1), len(line)]
        pieces = tuple(
            work.Piece(int(a) * grain, int(b - a) * grain, bool(line[a] == 1))
            for a, b in zip(edges, edges[1:], strict=False) if line[a]
        )  # fmt: skip
        if pieces and steps and steps[-1].pieces == pieces and steps[-1].at + steps[-1].size == n * grain:
            steps[-1] = steps[-1]._replace(size=steps[-1].size + grain)
        elif pieces:
            steps.append(work.Step(n * grain, grain, pieces))
    return tuple(steps)


def _runs(steps: work.Pattern) -> work.Pattern:
    """The same with a step of its own for every run of pieces without a gap."""
    found = []
    for step in steps:
        run: list[work.Piece] = []
        for piece in step.pieces:
            if run and run[-1].at + run[-1].size != piece.at:
                found.append(step._replace(pieces=tuple(run)))
                run = []
            run.append(piece)
        found.append(step._replace(pieces=tuple(run)))
    return tuple(found)


# The backend


class _Call:
    """One call: sizes, work, and what both directions share."""

    def __init__(self, spec: Spec, q: Any, k: Any, v: Any, operands: Any, upright: bool):
        self.spec, self.operands = spec, operands
        self.frame = Frame(q.shape[1], k.shape[1], tile_sizes(spec, q, k, v, upright)[0])
        self.pieces = _Pieces(spec, self.frame, upright)
        terms = spec.terms(operands)
        self.work = work_of(terms.mask, self.frame, upright)
        self.options = {
            "precision": jax.lax.Precision.HIGHEST if spec.precision is None else spec.precision,
            "memory": MEMORY.get(spec.target.chip or "", None),
            "interpret": spec.target.interpret,
        }
        self.windows = self.pieces.windows(operands)


def heads_first(x: jax.Array) -> jax.Array:
    return jnp.swapaxes(x, 1, 2)


def forward(spec: Spec, q: Any, k: Any, v: Any, operands: Any) -> tuple[jax.Array, jax.Array]:
    """out `[b, t, h, e]` and lse `[b, t, h]`."""
    call = _Call(spec, q, k, v, operands, upright=True)
    out, lse = _forward(
        call.pieces.query(q), heads_first(k), heads_first(v),
        call.pieces.arrays(operands), call.windows,
        call.pieces.terms(), call.work, call.frame.sizes, dtype=spec.dtype, **call.options,
    )  # fmt: skip
    return heads_first(out), jnp.swapaxes(lse[:, :, 0], 1, 2)


def backward(
    spec: Spec, q: Any, k: Any, v: Any, operands: Any, out: Any, lse: Any, dout: Any, dlse: Any, learn: Any
) -> Any:
    """Gradients of q, k, v and of the operands, None for those that do not `learn`."""
    call = _Call(spec, q, k, v, operands, upright=False)
    pieces = call.pieces
    wide = lambda x: x.astype(jnp.float32)
    delta = jnp.sum(wide(dout) * wide(out), -1) - dlse
    arrays, pull = jax.vjp(pieces.arrays, operands)
    wanted = tuple(learn[slot.array] for slot in pieces.slots)
    dq, dk, dv, found = _backward(
        pieces.query(q), heads_first(k), heads_first(v), jnp.swapaxes(lse, 1, 2), heads_first(dout.astype(v.dtype)),
        jnp.swapaxes(delta, 1, 2), arrays, call.windows, wanted, pieces.terms(), call.work, call.frame.sizes,
        dq_dtype=q.dtype, factor=pieces.scale, **call.options,
    )  # fmt: skip
    dq, dk, dv = (heads_first(x) for x in (dq, dk, dv))
    rest = iter(found)
    cotangents = [next(rest)[tuple(map(slice, x.shape))] if y else jnp.zeros_like(x) for x, y in zip(arrays, wanted, strict=True)]
    (doperands,) = pull([c.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else np.zeros(x.shape, jax.dtypes.float0) for c, x in zip(cotangents, arrays, strict=True)])
    doperands = [x if y else None for x, y in zip(doperands, learn, strict=True)]
    fold = lambda x, like: x if x.shape[0] == like.shape[0] else wide(x).reshape(-1, *like.shape).sum(0)
    return (*(fold(x, like).astype(like.dtype) for x, like in ((dq, q), (dk, k), (dv, v))), doperands)


def cut(spec: Spec, q: Any, k: Any, v: Any, operands: Any, mask: Any, known: bool) -> Cut:
    """How the call is cut, forward; blocks are counted where the mask is `known`."""
    del operands
    sizes, source = tile_sizes(spec, q, k, v, upright=True)
    tile, blocks = (sizes.query, sizes.key), None
    frame = Frame(q.shape[1], k.shape[1], sizes)
    b, h = q.shape[0], q.shape[2]
    found = None
    if known:
        query, key = (_blocks.Tiling(n, x, overhang=True) for n, x in _lengths(frame))
        answer = _blocks.answers(mask, query, key)
        shape = (b, h, query.count, key.count)
        some, every = (np.broadcast_to(np.asarray(x), shape) for x in (answer.some, answer.every & answer.some))
        full, partial = int(every.sum()), int(some.sum()) - int(every.sum())
        blocks = some.size - full - partial, partial, full
        entry = tables.find(tables.entries(), spec.target.chip, max(q.shape[-1], v.shape[-1]), max(q.shape[1], k.shape[1]), *_case(spec, True)).entry
        pairs = (full + partial / 2) * tile[0] * tile[1]  # a partial tile does about half its products
        found = entry.milliseconds * pairs / entry.pairs * (q.shape[-1] + v.shape[-1]) / (2 * entry.d)
    return Cut(tile, blocks, source, found)
