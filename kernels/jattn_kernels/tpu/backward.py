"""Backward: gradients of q, k, v and of the operands, in one pass, with memory linear in t + s.

Grid: batch element, key head, query tile of each query head of the group.  The gradients of a chunk of keys stay in
fast memory while all query tiles go by, so that a group adds up there, and no partial gradient is ever written.  Scores
stand with keys along rows: then what belongs to a query (lse, delta) lies along lanes, and of the five products
s = k q', dp = v do', dv = p do, dk = ds q, dq = ds' k only the last has a transposed operand.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from jattn_kernels.tiles.functions import LOG2E, TileFunctions
from jattn_kernels.tiles.place import Index, Place
from jattn_kernels.tiles.work import Array, Frame, Lists, Runs, Stretch, Strip, Work
from jattn_kernels.tpu.gradient import Gradient
from jattn_kernels.tpu.grid_step import GridStep, StepOptions, product
from jattn_kernels.tpu.lanes import lane_slice
from jattn_kernels.tpu.layout import OperandLayout, array
from jattn_kernels.tpu.sizes import TileSizes

UNSEEN = math.inf  # the lse of rows that see nothing or do not exist: every exp2(score - it) is 0
_SPAN = 512  # keys cleared and written at a time, in a loop: all at once would be code for each


class _Backward(GridStep):
    """One step of the grid: a query tile of one head and a chunk of keys."""

    transposed = True
    ahead = False  # the compiler overlaps the unrolled strips as well by itself

    def __init__(
        self,
        refs: Sequence[jax.Ref],
        gradients: tuple[Gradient | None, ...],
        group: int,
        factors: tuple[float, float],
        shape: Lists | Runs,
        scalars: int,
        **static: Unpack[StepOptions],
    ):
        frame, layouts = static["frame"], static["layouts"]
        read, (chunk, self.q, self.k, self.v, self.do, self.lse, self.delta, *rest) = refs[:scalars], refs[scalars:]
        operands, rest = rest[: len(layouts)], rest[len(layouts) :]
        self.gradients, self.factors = gradients, factors
        active_gradients = [x for x in gradients if x is not None]
        rest = rest[sum(x.tiled for x in active_gradients) :]  # the zeros that tiled gradients start from
        self.dq, self.dk, self.dv, *rest = rest
        outputs = iter(rest[: len(active_gradients)])
        self.doperands = [None if x is None else next(outputs) for x in gradients]
        self.dq_sum, self.dk_sum, self.dv_sum, *rest = rest[len(active_gradients) :]
        self.transposed_rows = (rest.pop(0), rest.pop(0)) if frame.sizes.transposed_dkv else None
        self.scratch = rest
        self.step, self.steps = pl.program_id(2), pl.num_programs(2)
        h = pl.program_id(1) * group + jax.lax.div(self.step, frame.query_tiles)
        place = pl.program_id(0), h, jax.lax.rem(self.step, frame.query_tiles)
        number = 0 if frame.chunks == 1 else chunk[0]
        super().__init__(shape.visits(read, *place, 0, number), operands, place, number, **static)

    def rows(self, ref: jax.Ref, at: slice) -> jax.Array:
        """Queries or cotangents; past the end of the array 0 and not what memory held."""
        x = ref[at, :]
        if self.frame.t % self.sizes.query:
            i = jax.lax.broadcasted_iota(jnp.int32, (at.stop - at.start, 1), 0) + self.i * self.sizes.query + at.start
            x = jnp.where(i < self.frame.t, x, jnp.zeros_like(x))
        return x

    def _span(self, strip: Strip, tile: Index) -> tuple[slice, Any, bool]:
        """Rows of the query tile, the place of the strip's keys, whether any of it is masked."""
        rows = slice(strip.stretches[0].at, strip.stretches[-1].at + strip.stretches[-1].size)
        return rows, self.place(strip, strip.stretches[0], tile), any(x.masked for x in strip.stretches)

    def seen(self, strip: Strip, tile: Index) -> Any:
        """Which keys of a strip some query of it sees, `[keys, 1]`; None if that is all of those within reach."""
        sees = self.functions.sees
        if sees is None or not all(x.masked for x in strip.stretches):
            return None
        places = [self.place(strip, x, tile) for x in strip.stretches]
        some = (sees(*x.positions(), self.parts(x)) & self.real_rows(x) for x in places)
        seen = [jnp.max(x.astype(jnp.float32), axis=1, keepdims=True) for x in some]
        return functools.reduce(jnp.maximum, seen) > 0

    def scores(self, strip: Strip, tile: Index) -> tuple[jax.Array, jax.Array, Any]:
        """The products k q' and v do' of a strip, and which of its keys are seen."""
        rows, place, masked = self._span(strip, tile)
        seen = self.seen(strip, tile)
        of = lambda keys, queries: product(
            self.keys(keys, place, masked, seen), self.rows(queries, rows), (1, 1), self.precision
        )
        return self.scaled(of(self.k, self.q)), of(self.v, self.do), seen

    def parts_of_rows_that_see(self, place: Place, stretch: Stretch) -> list[jax.Array]:
        """The operands' parts; 1, which no mod minds, in rows that see nothing: 0 * NaN is NaN in a gradient too."""
        parts = self.parts(place)
        if not (self.functions.blind and stretch.masked):
            return parts
        sees = self.lse[:, place.row : place.row + place.rows] != UNSEEN
        of_rows = lambda layout, x: "t" in layout.along and jnp.issubdtype(x.dtype, jnp.floating)
        return [
            jnp.where(sees, x, 1.0) if of_rows(layout, x) else x for layout, x in zip(self.layouts, parts, strict=True)
        ]

    def stretch(self, strip: Strip, stretch: Stretch, tile: Index, score: jax.Array, dp: jax.Array) -> tuple[Any, Any]:
        """Weights after the gates, and the gradient of the product k q', of one stretch."""
        rows = slice(stretch.at, stretch.at + stretch.size)
        place = self.place(strip, stretch, tile)
        i, j = place.positions()
        parts, live = self.parts_of_rows_that_see(place, stretch), self.live(place, stretch)
        real = self.real_rows(place)
        if not self.functions.finite and real is not True:
            live = real & live  # past the end stand zeros, where a mod may have no derivative
        hides = stretch.masked or real is not True
        learned = [n for n, x in enumerate(self.gradients) if x is not None]

        def with_learned(fn: Callable[[jax.Array, list[Any]], jax.Array]) -> Callable:
            """`fn` as a function of the tile and of the parts of the learned operands."""
            return lambda x, some: fn(x, [some[learned.index(n)] if n in learned else y for n, y in enumerate(parts)])

        some, gradients = [parts[n] for n in learned], []
        scores = with_learned(lambda x, parts: self.functions.scores(x, i, j, stretch.masked, live, parts))
        if self.functions.natural:
            score, pull = jax.vjp(scores, score, some)
            p = jnp.exp2((score - self.lse[:, rows]) * LOG2E)
        else:
            score, pull = scores(score, some), None
            p = jnp.exp2(score - self.lse[:, rows])
        weight = p
        if self.functions.weights is not None:
            gates = self.functions.weights
            weight, pull_gates = jax.vjp(with_learned(lambda p, parts: gates(p, i, j, hides, parts)), p, some)
            dp, dsome = pull_gates(dp)
            gradients.append(dsome)
        ds = p * (dp - self.delta[:, rows])
        if pull is not None:
            ds, dsome = pull(ds)
            gradients.append(dsome)
        for n, *parts in zip(learned, *gradients, strict=True) if gradients else ():
            self.gradients[n].add(self.doperands[n], functools.reduce(jnp.add, parts), place, self.scratch)
        return weight, ds

    def update(
        self, strip: Strip, tile: Index, scores: tuple[jax.Array, jax.Array, jax.Array | None], first: bool, last: bool
    ) -> None:
        del first, last
        *products, seen = scores
        rows, place, masked = self._span(strip, tile)
        keys = lane_slice(place.column, place.columns)
        offset = strip.stretches[0].at
        of_stretch = lambda x, stretch: x[:, stretch.at - offset : stretch.at - offset + stretch.size]
        done = [self.stretch(strip, x, tile, *(of_stretch(y, x) for y in products)) for x in strip.stretches]
        join = lambda parts: jnp.concatenate(parts, 1) if len(parts) > 1 else parts[0]
        weight, ds = join([x for x, _ in done]), join([x for _, x in done])
        key = self.keys(self.k, place, masked, seen)
        weight, ds = weight.astype(self.do.dtype), ds.astype(self.q.dtype)
        if self.transposed_rows is None:
            self.dv_sum[keys, :] += product(weight, self.rows(self.do, rows), (1, 0), self.precision)
            self.dk_sum[keys, :] += product(ds, self.rows(self.q, rows), (1, 0), self.precision)
        else:
            query, do = self.transposed_rows
            self.dv_sum[:, keys] += product(do[:, rows], weight, (1, 1), self.precision)
            self.dk_sum[:, keys] += product(query[:, rows], ds, (1, 1), self.precision)
        if self.sizes.transposed_dq:
            self.dq_sum[:, rows] += product(key, ds, (0, 0), self.precision)
        else:
            self.dq_sum[rows, :] += product(ds, key, (0, 0), self.precision)

    def every_span(self, visit: Callable) -> None:
        """visit(index of the key's sums, index of its outputs) for the chunk, a part at a time."""
        span = math.gcd(_SPAN, self.sizes.chunk)

        def one(n: jax.Array, _: jax.Array) -> jax.Array:
            keys = pl.ds(pl.multiple_of(n * span, span), span)
            visit((keys, slice(None)) if self.transposed_rows is None else (slice(None), keys), (keys, slice(None)))
            return _

        jax.lax.fori_loop(np.int32(0), np.int32(self.sizes.chunk // span), one, np.int32(0))

    def begin_rows(self) -> None:
        def clear(held: slice | pl.Slice | tuple, _: tuple) -> None:
            for x in (self.dk_sum, self.dv_sum):
                x[held] = jnp.zeros_like(x[held])

        pl.when(self.step == 0)(functools.partial(self.every_span, clear))
        self.dq_sum[...] = jnp.zeros(self.dq_sum.shape, self.dq_sum.dtype)
        if self.transposed_rows is not None:
            for x, ref in zip(self.transposed_rows, (self.q, self.do), strict=True):
                x[...] = self.rows(ref, slice(0, self.sizes.query)).T
        for gradient, ref in zip(self.gradients, self.doperands, strict=True):
            if gradient is not None:
                assert ref is not None  # what has a gradient has a place for it
                gradient.clear(ref, self.i == 0)

    def end_rows(self) -> None:
        dq_factor, dk_factor = self.factors
        dq = self.dq_sum[...] * dq_factor
        self.dq[...] = (dq.T if self.sizes.transposed_dq else dq).astype(self.dq.dtype)

        def write(held: tuple, keys: tuple) -> None:
            upright = lambda x: x if self.transposed_rows is None else x.T
            self.dk[keys] = (upright(self.dk_sum[held]) * dk_factor).astype(self.dk.dtype)
            self.dv[keys] = upright(self.dv_sum[held]).astype(self.dv.dtype)

        pl.when(self.step == self.steps - 1)(functools.partial(self.every_span, write))


def _kernel(*refs: jax.Ref, **static: Any):
    head = _Backward(refs, **static)
    head.begin_rows()
    head.visit()
    head.end_rows()


def backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    do: jax.Array,
    lse: jax.Array,
    delta: jax.Array,
    operands: Sequence[jax.Array],
    layouts: tuple[OperandLayout, ...],
    active: tuple[bool, ...],
    functions: TileFunctions,
    work: Work,
    sizes: TileSizes,
    *,
    dq_dtype: DTypeLike,
    factor: float,
    precision: jax.lax.Precision | None = None,
    memory: int | None = None,
    interpret: pltpu.InterpretParams | bool = False,  # as `pallas_call` takes it: a flag, or how a simulator is to run
) -> tuple[jax.Array, jax.Array, jax.Array, list[jax.Array]]:
    """Gradients of q, in `dq_dtype`, of k and v, and of the operands that are `active`, in their layout.

    `factor` is the scale of the product of query and key: in `functions.scale` or, with the units of the scores, in q
    `[b, h, t, d]`; k `[b, g, s, d]`, v `[b, g, s, e]`, do `[b, h, t, e]`; lse, in the units of the scores, and delta
    (the sum of do * out, less the cotangent of lse) float32 `[b, h, t]`.  What the rounding of lse takes from the
    weights is a factor of do and delta.  q, k, v may have shorter batch axes; their gradients have all of it.
    """
    (b, h, t, e), (_, g, s, d) = do.shape, k.shape
    frame = Frame(t, s, sizes)
    group = h // g
    rest = frame.padded["t"] - t
    lse = jnp.where(jnp.isneginf(lse), UNSEEN, lse)
    lse = jnp.pad(lse, ((0, 0), (0, 0), (0, rest)), constant_values=UNSEEN)[:, :, None]
    delta = jnp.pad(delta, ((0, 0), (0, 0), (0, rest)))[:, :, None]
    gradients = tuple(Gradient(x, frame) if y else None for x, y in zip(layouts, active, strict=True))
    active_gradients = [x for x in gradients if x is not None]
    tiled = [n for n, x in enumerate(active_gradients) if x.tiled]

    def at(b: Index, g: Index, x: Index, *scalars: jax.Array | jax.Ref) -> tuple[Any, ...]:
        *_, chunk = scalars
        return b, g * group + jax.lax.div(x, frame.query_tiles), jax.lax.rem(x, frame.query_tiles), chunk[0]

    def rows(n: int, width: int) -> pl.BlockSpec:
        def index(*grid: Any) -> tuple[Any, ...]:  # indices, and the scalars that are read ahead
            b, h, i, _ = at(*grid)
            return b % n, h, i, 0

        return pl.BlockSpec((None, None, sizes.query, width), index)

    def row(*grid: Any) -> tuple[Any, ...]:
        b, h, i, _ = at(*grid)
        return b, h, 0, i

    def keys(x: jax.Array) -> pl.BlockSpec:
        index = lambda b, g, *rest: (b % x.shape[0], g, rest[-1][0], 0)
        return pl.BlockSpec((None, None, sizes.chunk, x.shape[-1]), index)

    own = lambda x: pl.BlockSpec((None, None, sizes.chunk, x.shape[-1]), lambda b, g, *_: (b, g, 0, 0))
    flat = pl.BlockSpec((None, None, 1, sizes.query), row)
    sum_of = lambda n, width, transposed: (width, n) if transposed else (n, width)
    sums = [
        sum_of(sizes.query, d, sizes.transposed_dq),
        *(sum_of(sizes.chunk, width, sizes.transposed_dkv) for width in (d, e)),
    ]
    scratch: list[Any] = [pltpu.VMEM(x, jnp.float32) for x in sums]
    if sizes.transposed_dkv:
        scratch += [pltpu.VMEM((x.shape[-1], sizes.query), x.dtype) for x in (q, do)]
    if tiled:
        scratch += [pltpu.VMEM((sizes.query, sizes.key), jnp.float32), pltpu.SemaphoreType.DMA]
    held = sizes.chunk if frame.chunks > 1 else s
    out_shape = [array((b, h, t, d), dq_dtype)]
    out_shape += [array((b, g, held, x.shape[-1]), x.dtype) for x in (k, v)]
    out_shape += [x.shape(b, h) for x in active_gradients]
    scalars = len(work.scalars)
    inputs = scalars + 1 + 6 + len(layouts)
    units = 1.0 if functions.natural else math.log(2)
    factors = factor, units if functions.scale is None else factor
    call = pl.pallas_call(
        functools.partial(
            _kernel, gradients=gradients, group=group, factors=factors,
            shape=work.shape, scalars=scalars, patterns=work.patterns,
            frame=frame, functions=functions, layouts=layouts, precision=precision,
        ),
        name="jattn_backward",
        interpret=interpret,
        out_shape=out_shape,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=scalars + 1,
            grid=(b, g, group * frame.query_tiles),
            in_specs=[
                rows(q.shape[0], d), keys(k), keys(v), rows(b, e), flat, flat,
                *(x.spec(frame, at) for x in layouts), *(active_gradients[n].spec(at) for n in tiled),
            ],
            out_specs=[rows(b, d), own(k), own(v), *(x.spec(at) for x in active_gradients)],
            scratch_shapes=scratch,
        ),
        input_output_aliases={inputs + m: 3 + n for m, n in enumerate(tiled)},
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary" if tiled else "parallel",) * 2 + ("arbitrary",),
            vmem_limit_bytes=memory,
            flags=sizes.flags,
            disable_bounds_checks=True,
        ),
    )  # fmt: skip

    def of_chunk(chunk: jax.Array, scalars: Sequence[Array], zeros: list[jax.Array]) -> list[jax.Array]:
        return call(*scalars, chunk, q, k, v, do, lse, delta, *operands, *zeros)

    zeros = [jnp.zeros(active_gradients[n].shape(b, h).shape, jnp.float32) for n in tiled]
    if frame.chunks == 1:
        dq, dk, dv, *totals = of_chunk(jnp.zeros(1, jnp.int32), work.scalars, zeros)
    else:
        dq, dk, dv, totals = _chunk_by_chunk(of_chunk, work, active_gradients, frame.chunks, s, out_shape, zeros)
    return dq, dk, dv, [x.total(y) for x, y in zip(active_gradients, totals, strict=True)]


def _chunk_by_chunk(
    of_chunk: Callable,
    work: Work,
    active_gradients: list[Gradient],
    chunks: int,
    s: int,
    shapes: Sequence[jax.ShapeDtypeStruct],
    zeros: list[jax.Array],
) -> Any:
    """Keys that do not stand in fast memory at once: the gradients of queries add up over chunks."""
    joined = [x.layout.along == "s" for x in active_gradients]
    summed = [shapes[0], *(x for x, y in zip(shapes[3:], joined, strict=True) if not y)]
    start = [jnp.zeros(x.shape, jnp.float32) for x in summed]

    def body(carry, step):
        ((dq, *sums), zeros), (chunk, *scalars) = carry, step
        part, dk, dv, *totals = of_chunk(chunk[None], scalars if work.by_chunk else work.scalars, zeros)
        apart = [x for x, y in zip(totals, joined, strict=True) if y]
        summed, tiles = [], []
        rest = iter(sums)
        for x, gradient, y in zip(totals, active_gradients, joined, strict=True):
            if not y:
                before = next(rest)
                summed.append(x if gradient.tiled else before + x)
                if gradient.tiled:
                    tiles.append(x)
        return ((dq + part, *summed), tiles), (dk, dv, *apart)

    steps = jnp.arange(chunks, dtype=jnp.int32), *(work.scalars if work.by_chunk else ())
    ((dq, *sums), _), (dk, dv, *apart) = jax.lax.scan(body, (tuple(start), zeros), steps)
    join = lambda x: jnp.moveaxis(x, 0, 2).reshape(*x.shape[1:3], -1, x.shape[-1])[:, :, :s]
    rest, own = iter(sums), iter(apart)
    whole = [jnp.moveaxis(next(own), 0, 3).reshape(*shapes[0].shape[:2], 1, -1) if y else next(rest) for y in joined]
    return dq.astype(shapes[0].dtype), join(dk), join(dv), whole
