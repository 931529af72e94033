"""Tile sizes of a call on TPU, and masks as lists of work."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np
from jattn_kernels import chips, tables
from jattn_kernels.tpu import work
from jattn_kernels.tpu.operands import Frame
from jattn_kernels.tpu.work import LANES, Sizes

from jattn import _blocks, masks
from jattn._problem import PassSizes, Spec
from jattn._reach import Span, span
from jattn._terms import Operand
from jattn.backends import _tpu_patterns
from jattn.backends._tpu_terms import parts_of, terms_of

_SCALARS = 2**17  # numbers that a kernel reads ahead of its grid: half of scalar memory


def case_of(spec: Spec, t: int, s: int, upright: bool) -> tuple[str, str]:
    """Mask class and pass, as the tables name them; a window as wide as the sequence is none."""
    mask = terms_of(spec).mask
    window = any(isinstance(x.left, int) and x.left < t - 1 for x in parts_of(mask, masks.Window))
    kind = "full" if span(mask).open(t, s).full else "window" if window else "causal"
    return kind, "forward" if upright else "backward"


def tile_sizes(spec: Spec, q: Any, k: Any, v: Any, upright: bool) -> tuple[Sizes, str]:
    """The tile sizes of a call and where they come from."""
    if isinstance(spec.blocks, PassSizes) and (own := spec.blocks.forward if upright else spec.blocks.backward):
        return own, "as asked for"
    t, s, d = q.shape[1], k.shape[1], max(q.shape[-1], v.shape[-1])
    found = tables.find("tpu", spec.target.chip, d, max(t, s), *case_of(spec, t, s, upright))
    sizes, source = Sizes(**found.entry.sizes), str(found)
    query, key, chunk = sizes.query, sizes.key, sizes.chunk
    if spec.tile is not None:
        (query, key), source = spec.tile, "as asked for"
    if any("t" in axes and "s" in axes for axes in spec.signature.axes):  # two of their blocks in an eighth of memory
        query, key = min(query, 512), min(key, 512)
        chunk = min(chunk, (chips.tpu(spec.target.chip) or chips.SMALLEST_TPU).granted // (8 * 8 * query))
    step = sizes.step
    terms = terms_of(spec)
    if terms.mods or terms.gates or isinstance(terms.compare.scale, Operand):  # several numbers for each score
        step, chunk = min(step, 256), chunk // 2
    query, key = (min(x, -(-n // LANES) * LANES) for x, n in ((query, t), (key, s)))
    query = max(query, -(-t * work.RUN // _SCALARS))
    query, key = (-(-x // LANES) * LANES for x in (query, key))
    most = chunk * found.entry.d * 2 // (d * max(q.dtype.itemsize, k.dtype.itemsize, v.dtype.itemsize))
    chunk = max(key, min(chunk, most, -(-s // key) * key) // key * key)
    rows = sizes.height if query % sizes.height == 0 else 0
    return dataclasses.replace(sizes, query=query, key=key, step=math.gcd(key, step), chunk=chunk, rows=rows), source


def lengths(frame: Frame) -> tuple[tuple[int, int], tuple[int, int]]:
    return (frame.t, frame.sizes.query), (frame.s, frame.sizes.key)


def work_of(mask: Any, frame: Frame, upright: bool) -> work.Work:
    """Lists where they fit in scalar memory, else runs."""
    if not jax.tree.leaves(mask):
        return static_work(mask, frame, upright)
    some, every = _blocks.answers(mask, *(_blocks.Tiling(n, x, overhang=True) for n, x in lengths(frame)))
    bounds = _tpu_patterns.ends_of_span(span(mask), frame)[None]
    patterns = _tpu_patterns.whole(frame, upright)
    for axis in (None, 1, 0):  # for single heads and batch elements only as far as scalar memory goes
        if axis is not None:
            some, every = some.any(axis, keepdims=True), every.all(axis, keepdims=True)
        flat = (x.reshape(-1, *x.shape[2:]) for x in (some, every & some))
        number = np.zeros((1, 1, frame.key_tiles), np.int32)
        answers = work.Answers(next(flat), next(flat), number, *some.shape[:2])
        if (found := _as_lists(answers, bounds, patterns, frame, upright)) is not None:
            return found
        if math.prod(answers.some.shape[:2]) * work.RUN <= _SCALARS:
            ends = work.runs(answers)
            return _as_runs(ends, None, bounds, answers, patterns, frame)
    raise AssertionError(f"{frame} has too many query tiles: tile_sizes sees to that")


@functools.lru_cache(maxsize=256)
def static_work(mask: Any, frame: Frame, upright: bool) -> work.Work:
    near = span(mask)
    if near.exact:
        return _work_of_span(near, frame, upright)
    answers, patterns = _tpu_patterns.of_mask(mask, frame, upright)
    ends = work.runs(answers)
    if (found := _as_lists(answers, ends, patterns, frame, upright)) is not None:
        return found
    return _as_runs(ends, None, ends, answers, _tpu_patterns.whole(frame, upright), frame)


def _work_of_span(near: Span, frame: Frame, upright: bool) -> work.Work:
    """Of a window, or of no mask: the same at every query tile, it takes no scalars."""
    ends = _tpu_patterns.ends_of_span(near, frame)
    numbers, patterns = _tpu_patterns.of_span(near, ends, frame, upright)
    fit = max(map(len, numbers)) <= work.MOST_PARTIAL
    packed = [sum(number << (work.BITS * n) for n, number in enumerate(x)) for x in numbers] if fit else None
    alike = (ends == ends[:1]).all() and numbers == numbers[:1] * len(numbers)
    if frame.query_tiles * frame.key_tiles <= _SCALARS * 32 and not (alike and fit):
        answers = _tpu_patterns.tiles_of_span(ends, numbers, frame.key_tiles)
        if (found := _as_lists(answers, ends[None], patterns, frame, upright, runs_do=fit)) is not None:
            return found
    patterns = patterns if fit else _tpu_patterns.whole(frame, upright)
    one = work.Answers(None, None, None, 1, 1)
    return _as_runs(ends[None], packed, ends[None], one, patterns, frame)


def _steps(bounds: np.ndarray, per: int) -> int:
    """How many chunks of keys a query tile uses at most."""
    first, end = bounds[..., 0], bounds[..., 3]
    return int(np.where(end > first, (end - 1) // per - first // per + 1, 1).max(initial=1))


def _as_lists(
    answers: work.Answers, bounds: Any, patterns: Any, frame: Frame, upright: bool, runs_do: bool = False
) -> work.Work | None:
    """None if they do not fit, or if all chunks' are a long constant where runs would do as well.

    `bounds`: ends of runs that have all tiles that are visited, known while tracing.
    """
    some, sizes = answers.some, frame.sizes
    n, nq, nk = some.shape
    per = sizes.chunk // sizes.key
    static = isinstance(some, np.ndarray)
    longest = int(some.sum(-1).max(initial=1)) if static else int((bounds[..., 3] - bounds[..., 0]).max(initial=1))
    steps = _steps(bounds, per) if upright else 1
    if static and upright:
        used = np.add.reduceat(some, np.arange(0, nk, per), axis=-1)
        steps = int((used > 0).sum(-1).max(initial=1))
    longest = longest if upright else min(longest, per)
    by_chunk = not upright and frame.chunks > 1
    words = n * nq * (longest + 4 * steps)
    if nk > 2**16 or words > _SCALARS or (runs_do and by_chunk and words * frame.chunks > _SCALARS):
        return None
    if by_chunk:
        scalars = work.lists_by_chunk(answers, longest, sizes)
    else:
        scalars = work.lists(answers, longest, steps, sizes)[: 3 if upright else 2]
    counts = scalars[1].reshape(-1, 3)[:, 1:]
    alike = tuple(counts[0].tolist()) if static and (counts == counts[:1]).all() else None
    shape = work.Lists(answers.batch, answers.heads, nq, longest, steps, alike)
    flat = tuple(x.reshape(frame.chunks, -1) if by_chunk else x.reshape(-1) for x in scalars)
    return work.Work(flat, shape, patterns, by_chunk)


def _as_runs(
    ends: Any, packed: Any, bounds: np.ndarray, answers: work.Answers, patterns: Any, frame: Frame
) -> work.Work:
    """`packed`: of each query tile the numbers of its partial tiles' patterns; None for 0."""
    per = frame.sizes.chunk // frame.sizes.key
    xp = work.numpy_of(ends)
    packed = xp.zeros(ends.shape[1], xp.int32) if packed is None else np.array(packed, np.int64).astype(np.int32)
    scalars = xp.concatenate([ends, xp.broadcast_to(packed[None, :, None], (*ends.shape[:2], 1))], -1).astype(xp.int32)
    alike = None
    if isinstance(scalars, np.ndarray) and (scalars == scalars[:1, :1]).all():
        alike = tuple(scalars[0, 0].tolist())
    steps = _steps(bounds, per)
    shape = work.Runs(answers.batch, answers.heads, frame.query_tiles, per, frame.chunks, steps, alike)
    return work.Work((scalars.reshape(-1),) if alike is None else (), shape, patterns)
