"""Forward: out and lse of softmax attention, with every mask, mod and gate as tile functions.

Grid: batch element, query head, query tile, chunk of keys.  The state of a query tile's softmax stays in fast memory
while its key tiles are visited; maxima and sums are kept once in every lane, so that no step moves them across lanes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jattn_kernels.tpu.operands import Frame, Place, Window
from jattn_kernels.tpu.work import LANES, Piece, Sizes, Step, Work, WorkShape, tile_and_pattern

LOG2E = math.log2(math.e)
LOWEST = -1e38  # below every score but -inf: what a row's maximum starts from, so that no difference is inf - inf


class Terms(NamedTuple):
    """What happens to a tile between the two products, as functions of it, its positions and the operands' parts."""

    scores: Callable  # (score, i, j, masked, live, parts) -> score, -inf where masked or not `live`
    weights: Callable | None  # (weight, i, j, parts) -> weight
    natural: bool  # scores are natural logarithms; else log2(e) is a factor of the query already


def lanes(x: jax.Array, n: int) -> jax.Array:
    """`[rows, LANES]` with equal lanes to `[rows, n]`."""
    return jnp.concatenate([x] * pl.cdiv(n, LANES), 1)[:, :n] if n > LANES else x[:, :n]


def row(x: jax.Array) -> jax.Array:
    """`[n, LANES]` with equal lanes to `[1, n]`: the diagonals of its squares, which costs less than a transpose."""
    shape = (LANES, LANES)
    diagonal = jax.lax.broadcasted_iota(jnp.int32, shape, 0) == jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    parts = [jnp.where(diagonal, x[n : n + LANES], 0) for n in range(0, x.shape[0], LANES)]
    return jnp.concatenate([jnp.sum(part, axis=0, keepdims=True) for part in parts], 1)


def _fold(combine: Callable, x: jax.Array) -> jax.Array:
    """`[rows, n]` to `[rows, LANES]`, without moving anything across lanes."""
    return functools.reduce(combine, [x[:, n : n + LANES] for n in range(0, x.shape[1], LANES)])


def product(a: jax.Array, b: jax.Array, contract: tuple[int, int], precision: Any) -> jax.Array:
    """a and b contracted over one axis each, in float32; `precision` is that of float32 inputs."""
    precision = precision if a.dtype == b.dtype == jnp.float32 else None
    dims = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)


class _Head:
    """One grid step: a query tile of one head and the key tiles of one chunk."""

    def __init__(self, frame: Frame, shape: WorkShape, terms: Terms, windows: Any, patterns: Any, precision: Any, refs):
        self.frame, self.sizes, self.terms, self.windows = frame, frame.sizes, terms, windows
        self.patterns, self.precision = patterns, precision
        tiles, counts, chunks, q, k, v, *rest = refs
        n = len(windows)
        self.tiles, self.q, self.k, self.v, self.operands = tiles, q, k, v, rest[:n]
        self.out, self.lse, self.top, self.total, self.sum = rest[n:]
        self.b, self.h, self.i, self.c = (pl.program_id(n) for n in range(4))
        self.begin, self.full, self.partial = shape.span(counts, self.b, self.h, self.i, self.c)
        self.start = shape.chunk(chunks, self.b, self.h, self.i, self.c) * self.sizes.chunk

    def place(self, step: Step, piece: Piece, tile: Any) -> Place:
        j = tile * self.sizes.key + piece.column
        i = self.i * self.sizes.query + step.row
        return Place(self.b, self.h, step.row, step.rows, j - self.start, piece.columns, i, j, upright=True)

    def rows_of(self, ref: Any, place: Place, masked: bool) -> jax.Array:
        """Keys or values of a rectangle; what lies past the end of the array is 0 and not what memory held."""
        x = ref[pl.ds(pl.multiple_of(place.column, LANES), place.columns), :]
        if masked and self.frame.s % self.sizes.key:
            at = jax.lax.broadcasted_iota(jnp.int32, (place.columns, 1), 0) + place.j
            x = jnp.where(at < self.frame.s, x, jnp.zeros_like(x))
        return x

    def parts(self, place: Place) -> list[jax.Array]:
        return [w.read(ref, place, self.frame) for w, ref in zip(self.windows, self.operands, strict=True)]

    def scores(self, step: Step, tile: Any) -> list[jax.Array]:
        """The scores of a step in units of log 2, a piece at a time."""
        found = []
        for piece in step.pieces:
            place = self.place(step, piece, tile)
            query, key = self.q[step.row : step.row + step.rows, :], self.rows_of(self.k, place, piece.masked)
            score = product(query, key, (1, 1), self.precision)
            i, j = place.positions()
            live = j < self.frame.s if piece.masked and self.frame.s % self.sizes.key else True
            score = self.terms.scores(score, i, j, piece.masked, live, self.parts(place))
            found.append(score * LOG2E if self.terms.natural else score)
        return found

    def update(self, step: Step, tile: Any, scores: list[jax.Array]) -> None:
        """The softmax of the step's rows takes in its scores."""
        rows = slice(step.row, step.row + step.rows)
        before = self.top[rows, :]
        folded = functools.reduce(jnp.maximum, [_fold(jnp.maximum, x) for x in scores])
        top = jnp.maximum(before, jnp.max(folded, axis=1, keepdims=True))
        shrink = jnp.exp2(before - top)
        weights = [jnp.exp2(x - lanes(top, x.shape[1])) for x in scores]
        self.top[rows, :] = top
        self.total[rows, :] = self.total[rows, :] * shrink + sum(_fold(jnp.add, p) for p in weights)
        out = self.sum[rows, :] * lanes(shrink, self.v.shape[1])
        for piece, weight in zip(step.pieces, weights, strict=True):
            place = self.place(step, piece, tile)
            if self.terms.weights is not None:
                weight = self.terms.weights(weight, *place.positions(), self.parts(place))
            value = self.rows_of(self.v, place, piece.masked)
            out = out + product(weight.astype(value.dtype), value, (1, 0), self.precision)
        self.sum[rows, :] = out

    def work_off(self, steps: Any, tile: Any) -> None:
        """Steps in order; the products of the next come before the exponentials of this one, to overlap with them."""
        scores = self.scores(steps[0], tile)
        for this, following in zip(steps, [*steps[1:], None], strict=True):
            coming = None if following is None else self.scores(following, tile)
            self.update(this, tile, scores)
            scores = coming

    def visit_all(self) -> None:
        def full(n, _):
            self.work_off(self.sizes.whole(masked=False), tile_and_pattern(self.tiles[self.begin + n])[0])
            return 0

        def partial(n, _):
            tile, chosen = tile_and_pattern(self.tiles[self.begin + self.full + n])
            for number, steps in enumerate(self.patterns):
                if len(self.patterns) == 1:
                    self.work_off(steps, tile)
                else:
                    pl.when(chosen == number)(functools.partial(self.work_off, steps, tile))
            return 0

        jax.lax.fori_loop(0, self.full, full, 0)
        if self.patterns:
            jax.lax.fori_loop(0, self.partial, partial, 0)

    def begin_rows(self) -> None:
        self.top[...] = jnp.full_like(self.top, LOWEST)
        self.total[...] = jnp.zeros_like(self.total)
        self.sum[...] = jnp.zeros_like(self.sum)

    def end_rows(self) -> None:
        total = jnp.broadcast_to(jnp.sum(self.total[...], axis=1, keepdims=True), self.total.shape)
        seen = total > 0
        total = jnp.where(seen, total, 1)
        self.out[...] = (self.sum[...] * lanes(1 / total, self.v.shape[1])).astype(self.out.dtype)
        self.lse[...] = row(jnp.where(seen, self.top[...] + jnp.log2(total), -jnp.inf)) * math.log(2)


def _kernel(*refs, chunks: int, **static):
    head = _Head(refs=refs, **static)
    only = chunks == 1
    head.begin_rows() if only else pl.when(head.c == 0)(head.begin_rows)
    head.visit_all()
    head.end_rows() if only else pl.when(head.c == chunks - 1)(head.end_rows)


def forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    operands: Any,
    windows: tuple[Window, ...],
    terms: Terms,
    work: Work,
    sizes: Sizes,
    *,
    dtype: Any,
    precision: Any = None,
    memory: int | None = None,
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
    """out `[b, h, t, e]` in `dtype` and lse `[b, h, 1, t]` of q `[b, h, t, d]`, k `[b, g, s, d]`, v `[b, g, s, e]`.

    Batch axes may be shorter than the longest: element b uses entry b % length.  `memory` is the fast memory that the
    kernel may use, in bytes.
    """
    (_, h, t, d), (_, g, s, e) = q.shape, v.shape
    b = max(*(x.shape[0] for x in (q, k, v)), *(w.batch for w in windows))
    frame, shape = Frame(t, s, sizes), work.shape
    chunk_at = lambda b, h, i, c, chunks: shape.chunk(chunks, b, h, i, c)

    def at(b, h, i, c, tiles, counts, chunks):
        return b, h, i, chunk_at(b, h, i, c, chunks)

    def keys(x):
        index = lambda b, h, i, c, tiles, counts, chunks: (
            b % x.shape[0], jax.lax.div(h, h_per_g), chunk_at(b, h, i, c, chunks), 0,
        )  # fmt: skip
        return pl.BlockSpec((None, None, sizes.chunk, x.shape[-1]), index)

    h_per_g = h // g
    rows = lambda n, width: pl.BlockSpec((None, None, sizes.query, width), lambda b, h, i, c, *_: (b % n, h, i, 0))
    static = dict(
        frame=frame, shape=shape, terms=terms, windows=windows, patterns=work.patterns, precision=precision,
    )  # fmt: skip
    per_row = pltpu.VMEM((sizes.query, LANES), jnp.float32)
    return pl.pallas_call(
        functools.partial(_kernel, chunks=shape.chunks, **static),
        name="jattn_forward",
        interpret=interpret,
        out_shape=[jax.ShapeDtypeStruct((b, h, t, e), dtype), jax.ShapeDtypeStruct((b, h, 1, t), jnp.float32)],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(b, h, frame.query_tiles, shape.chunks),
            in_specs=[rows(q.shape[0], d), keys(k), keys(v), *(w.spec(frame, at) for w in windows)],
            out_specs=[rows(b, e), pl.BlockSpec((None, None, 1, sizes.query), lambda b, h, i, c, *_: (b, h, 0, i))],
            scratch_shapes=[per_row, per_row, pltpu.VMEM((sizes.query, e), jnp.float32)],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=memory
        ),
    )(*work.scalars, q, k, v, *operands)
