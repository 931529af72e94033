"""Forward: out and lse of softmax attention, with every mask, mod and gate as tile functions.

Grid: batch element, query head, query tile, chunk of keys.  The state of a query tile's softmax stays in fast memory
while its key tiles are visited; maxima and sums are kept once in every lane, so that no step moves them across lanes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Unpack

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from jattn_kernels.tiles.functions import LOG2E, TileFunctions
from jattn_kernels.tiles.place import Index, Place
from jattn_kernels.tiles.work import Frame, Lists, Pattern, Runs, Stretch, Strip, Work
from jattn_kernels.tpu.grid_step import GridStep, StepOptions, product
from jattn_kernels.tpu.lanes import to_column
from jattn_kernels.tpu.layout import OperandLayout, array
from jattn_kernels.tpu.sizes import LANES, TileSizes

_reciprocal = getattr(pltpu, "reciprocal", None) or pl.reciprocal  # jax 0.12 moved it
LOWEST = float(jnp.finfo(jnp.float32).min)  # what a row's maximum starts from: no difference is then inf - inf


def lanes(x: jax.Array, n: int) -> jax.Array:
    """`[rows, LANES]` with equal lanes to `[rows, n]`."""
    return jnp.concatenate([x] * pl.cdiv(n, LANES), 1)[:, :n] if n > LANES else x[:, :n]


def row(x: jax.Array) -> jax.Array:
    """`[n, LANES]` with equal lanes to `[1, n]`: the diagonals of its squares, which costs less than a transpose."""
    shape = (LANES, LANES)
    diagonal = jax.lax.broadcasted_iota(jnp.int32, shape, 0) == jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    parts = [jnp.where(diagonal, x[n : n + LANES], 0) for n in range(0, x.shape[0], LANES)]
    return jnp.concatenate([jnp.sum(part, axis=0, keepdims=True) for part in parts], 1)


def fold_lanes(combine: Callable, x: jax.Array) -> jax.Array:
    """`[rows, n]` to `[rows, LANES]`, without moving anything across lanes."""
    return functools.reduce(combine, [x[:, n : n + LANES] for n in range(0, x.shape[1], LANES)])


def reciprocal(x: jax.Array, newton: bool) -> jax.Array:
    """1 / x to the last bit but one or two."""
    if not newton:
        return 1 / x
    guess = _reciprocal(x, approx=True)
    for _ in range(2):
        guess = guess * (2 - x * guess)
    return guess


class _Forward(GridStep):
    """One step of the grid: a query tile of one head and the key tiles of one chunk."""

    ahead, transposed = True, False

    def __init__(self, refs: Sequence[jax.Ref], shape: Lists | Runs, scalars: int, **static: Unpack[StepOptions]):
        read, (self.q, self.k, self.v, *rest) = refs[:scalars], refs[scalars:]
        *operands, self.out, self.lse, self.remainder, self.top, self.total, self.sum = rest
        b, h, i, self.c = (pl.program_id(n) for n in range(4))
        chunk = 0 if static["frame"].chunks == 1 else shape.chunk(read, b, h, i, self.c)
        super().__init__(shape.visits(read, b, h, i, self.c), operands, (b, h, i), chunk, **static)

    def scores(self, strip: Strip, tile: Index) -> list[jax.Array]:
        """The scores of a strip, a stretch at a time; in units of log 2 unless they are natural."""
        scores = []
        query = self.q[strip.at : strip.at + strip.size, :]
        for stretch in strip.stretches:
            place = self.place(strip, stretch, tile)
            score = self.scaled(product(query, self.keys(self.k, place, stretch.masked), (1, 1), self.precision))
            live, parts = self.live(place, stretch), self.parts(place)
            scores.append(self.functions.scores(score, *place.positions(), stretch.masked, live, parts))
        return scores

    def exp(self, difference: jax.Array) -> jax.Array:
        """The exponential of a difference of scores: scaled after it is taken, or large scores would overflow."""
        return jnp.exp2(difference * LOG2E if self.functions.natural else difference)

    def update(self, strip: Strip, tile: Index, scores: list[jax.Array], first: bool, last: bool) -> None:
        """The softmax of the step's rows takes in its scores."""
        rows = slice(strip.at, strip.at + strip.size)
        tops = [jnp.max(x, axis=1, keepdims=True) for x in scores]
        before = jnp.full((strip.size, LANES), LOWEST, jnp.float32) if first else self.top[rows, :]
        top = functools.reduce(jnp.maximum, tops, before)
        weights = [self.exp(x - lanes(top, x.shape[1])) for x in scores]
        total = functools.reduce(jnp.add, (fold_lanes(jnp.add, p) for p in weights))
        out = functools.reduce(
            jnp.add,
            (self.weighted(strip, *x, tile) for x in zip(strip.stretches, weights, scores, strict=True)),
        )
        if not first:
            shrink = self.exp(before - top)
            total = self.total[rows, :] * shrink + total
            out = self.sum[rows, :] * lanes(shrink, out.shape[1]) + out
        if last:
            self.finish(rows, top, total, out)
        else:
            self.top[rows, :], self.total[rows, :], self.sum[rows, :] = top, total, out

    def weighted(self, strip: Strip, stretch: Stretch, weight: jax.Array, score: jax.Array, tile: Index) -> jax.Array:
        """The sum of values that a stretch adds."""
        place = self.place(strip, stretch, tile)
        if self.functions.weights is not None:
            weight = self.functions.weights(weight, *place.positions(), stretch.masked, self.parts(place))
        seen = self.seen(place, score) if stretch.masked and self.functions.sees is not None else None
        value = self.keys(self.v, place, stretch.masked, seen)
        return product(weight if self.sizes.wide else weight.astype(value.dtype), value, (1, 0), self.precision)

    def seen(self, place: Place, score: jax.Array) -> jax.Array:
        """Which keys of a rectangle some query sees, `[keys, 1]`."""
        some = (score != -jnp.inf) & self.real_rows(place)
        return to_column(jnp.max(some.astype(jnp.float32), axis=0, keepdims=True)) > 0

    def finish(self, rows: slice, top: jax.Array, total: jax.Array, out: jax.Array) -> None:
        """Writes what rows have come to; those that saw nothing give 0 and lse -inf."""
        total = jnp.broadcast_to(jnp.sum(total, axis=1, keepdims=True), total.shape)
        share = reciprocal(total, self.sizes.newton)
        out = jnp.where(lanes(total, out.shape[1]) == 0, 0, out * lanes(share, out.shape[1]))
        self.out[rows, :] = out.astype(self.out.dtype)
        top, total = row(top), row(total)  # log(0) = -inf
        log = jnp.log(total) if self.functions.natural else jnp.log2(total)
        self.lse[:, rows] = lse = top + log
        self.remainder[:, rows] = jnp.where(total == 0, 0, (top - lse) + log)

    def begin_rows(self) -> None:
        self.top[...] = jnp.full(self.top.shape, LOWEST, self.top.dtype)
        self.total[...] = jnp.zeros(self.total.shape, self.total.dtype)
        self.sum[...] = jnp.zeros(self.sum.shape, self.sum.dtype)

    def end_rows(self) -> None:
        self.finish(slice(0, self.sizes.query), self.top[...], self.total[...], self.sum[...])

    def leave(self, rows: slice) -> None:
        """Writes what rows have that see nothing: 0, and lse -inf."""
        self.out[rows, :] = jnp.zeros_like(self.out[rows, :])
        self.lse[:, rows] = jnp.full_like(self.lse[:, rows], -jnp.inf)
        self.remainder[:, rows] = jnp.zeros_like(self.remainder[:, rows])

    def work_off(self, strips: Pattern, tile: Index) -> None:
        super().work_off(strips, tile)
        if self.single:
            met = {r for strip in strips for r in range(strip.at, strip.at + strip.size, LANES)}
            for r in sorted(set(range(0, self.sizes.query, LANES)) - met):
                self.leave(slice(r, r + LANES))

    def visit_single(self) -> None:
        """There is one key tile in all: the state of a softmax need not leave the registers."""
        when(self.full > 0, functools.partial(self.full_tile, 0))
        if self.patterns:
            when(self.partial > 0, functools.partial(self.partial_tile, 0))
        when(self.full + self.partial == 0, functools.partial(self.leave, slice(0, self.sizes.query)))


def when(condition: bool | jax.Array, run: Callable) -> None:
    """`pl.when`, without a branch where the condition is known while tracing."""
    if not isinstance(condition, bool):
        pl.when(condition)(run)
    elif condition:
        run()


def _kernel(*refs: jax.Ref, shape: Lists | Runs, scalars: int, **static: Unpack[StepOptions]) -> None:
    head, steps = _Forward(refs, shape, scalars, **static), shape.steps
    if head.single:
        head.visit_single()
        return
    when(steps == 1 or head.c == 0, head.begin_rows)
    head.visit()
    when(steps == 1 or head.c == steps - 1, head.end_rows)


def forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    operands: Sequence[jax.Array],
    layouts: tuple[OperandLayout, ...],
    functions: TileFunctions,
    work: Work,
    sizes: TileSizes,
    *,
    dtype: DTypeLike,
    precision: jax.lax.Precision | None = None,
    memory: int | None = None,
    interpret: pltpu.InterpretParams | bool = False,  # as `pallas_call` takes it: a flag, or how a simulator is to run
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """out `[b, h, t, e]` in `dtype`, lse `[b, h, 1, t]` and what rounding took from it, of q `[b, h, t, d]`, k
    `[b, g, s, d]`, v `[b, g, s, e]`.

    Batch axes may be shorter than the longest: element b uses entry b % length.  `memory` is the fast memory that the
    kernel may use, in bytes.
    """
    (_, h, t, d), (_, g, s, e) = q.shape, v.shape
    b = max(*(x.shape[0] for x in (q, k, v)), *(x.batch for x in layouts))
    frame, shape = Frame(t, s, sizes), work.shape

    def at(b: Index, h: Index, i: Index, c: Index, *scalars: jax.Array):
        return b, h, i, shape.chunk(scalars, b, h, i, c)

    def keys(x: jax.Array):
        index = lambda b, h, *rest: (b % x.shape[0], jax.lax.div(h, h_per_g), at(b, h, *rest)[-1], 0)
        return pl.BlockSpec((None, None, sizes.chunk, x.shape[-1]), index)

    h_per_g = h // g
    rows = lambda n, width: pl.BlockSpec((None, None, sizes.query, width), lambda b, h, i, c, *_: (b % n, h, i, 0))
    flat = pl.BlockSpec((None, None, 1, sizes.query), lambda b, h, i, c, *_: (b, h, 0, i))
    per_row = pltpu.VMEM((sizes.query, LANES), jnp.float32)
    out, *of_rows = pl.pallas_call(
        functools.partial(
            _kernel,
            frame=frame,
            shape=shape,
            scalars=len(work.scalars),
            functions=functions,
            layouts=layouts,
            patterns=work.patterns,
            precision=precision,
        ),
        name="jattn_forward",
        interpret=interpret,
        out_shape=[array((b, h, t, e), dtype), *[array((b, h, 1, t), jnp.float32)] * 2],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(work.scalars),
            grid=(b, h, frame.query_tiles, shape.steps),
            in_specs=[rows(q.shape[0], d), keys(k), keys(v), *(x.spec(frame, at) for x in layouts)],
            out_specs=[rows(b, e), flat, flat],
            scratch_shapes=[per_row, per_row, pltpu.VMEM((sizes.query, e), jnp.float32)],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=memory,
            flags=sizes.flags,
            disable_bounds_checks=True,
        ),
    )(*work.scalars, q, k, v, *operands)
    return out, *functions.natural_lse(*of_rows)
