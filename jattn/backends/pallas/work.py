"""Masks as lists of work."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import numpy as np
from jattn_kernels.tiles import work
from jattn_kernels.tiles.work import Direction, Frame

from jattn import masks
from jattn._terms import AnyArray, block_tables
from jattn._terms.reach import Span, span
from jattn.backends.pallas import patterns as patterns_of
from jattn.backends.pallas.terms import parts_of
from jattn.masks import Mask

MOST_SCALARS = 2**17  # numbers that a kernel reads ahead of its grid: half of scalar memory


def class_of(mask: Mask | None, t: int, s: int) -> str:
    """The class of a mask, of `jattn_kernels.tables.MASKS`; a window as wide as the sequence is none."""
    if span(mask).open(t, s).full:
        return "full"
    windows = parts_of(mask, masks.Window)
    return "window" if any(isinstance(x.left, int) and x.left < t - 1 for x in windows) else "causal"


def lengths(frame: Frame) -> tuple[tuple[int, int], tuple[int, int]]:
    """Length and tile size of queries and of keys."""
    return (frame.t, frame.sizes.query), (frame.s, frame.sizes.key)


def work_of(mask: Mask | None, frame: Frame, direction: Direction, listed: bool = True) -> work.Work:
    """Lists where they fit in scalar memory and are not unwanted, else runs."""
    if not jax.tree.leaves(mask):
        return static_work(mask, frame, direction, listed)
    some, every = block_tables.answers(mask, *(block_tables.Tiling(n, x, overhang=True) for n, x in lengths(frame)))
    bounds = patterns_of.ends_of_span(span(mask), frame)[None]
    patterns = patterns_of.whole(frame, direction)
    for axis in (None, 1, 0):  # for single heads and batch elements only as far as scalar memory goes
        if axis is not None:
            xp = work.numpy_of(some)
            some, every = xp.any(some, axis, keepdims=True), xp.all(every, axis, keepdims=True)
        flat = (x.reshape(-1, *x.shape[2:]) for x in (some, every & some))
        number = np.zeros((1, 1, frame.key_tiles), np.int32)
        answers = work.Answers(next(flat), next(flat), number, *some.shape[:2])
        if listed and (lists := _as_lists(answers, bounds, patterns, frame, direction)) is not None:
            return lists
        if math.prod(answers.some.shape[:2]) * work.RUN <= MOST_SCALARS:
            ends = work.runs(answers)
            return _as_runs(ends, None, bounds, answers[3:], patterns, frame)
    raise AssertionError(f"{frame} has too many query tiles: tile_sizes sees to that")


@functools.lru_cache(maxsize=256)
def static_work(mask: Mask | None, frame: Frame, direction: Direction, listed: bool = True) -> work.Work:
    """`work_of` a mask without arrays."""
    near = span(mask)
    if near.exact:
        return _work_of_span(near, frame, direction, listed)
    answers, patterns = patterns_of.of_mask(mask, frame, direction)
    ends = work.runs(answers)
    if listed and (lists := _as_lists(answers, ends, patterns, frame, direction)) is not None:
        return lists
    return _as_runs(ends, None, ends, answers[3:], patterns_of.whole(frame, direction), frame)


def _work_of_span(near: Span, frame: Frame, direction: Direction, listed: bool) -> work.Work:
    """The work of a window, or of no mask: where it is the same at every query tile, it takes no scalars."""
    ends = patterns_of.ends_of_span(near, frame)
    numbers, patterns = patterns_of.of_span(near, ends, frame, direction)
    fit = max(map(len, numbers)) <= work.MOST_PARTIAL
    packed = [sum(number << (work.BITS * n) for n, number in enumerate(x)) for x in numbers] if fit else None
    alike = (ends == ends[:1]).all() and numbers == numbers[:1] * len(numbers)
    if frame.query_tiles * frame.key_tiles <= MOST_SCALARS * 32 and not (alike and fit):
        answers = patterns_of.tiles_of_span(ends, numbers, frame.key_tiles)
        if listed and (lists := _as_lists(answers, ends[None], patterns, frame, direction, runs_do=fit)) is not None:
            return lists
    patterns = patterns if fit else patterns_of.whole(frame, direction)
    return _as_runs(ends[None], packed, ends[None], (1, 1), patterns, frame)


def _steps(bounds: AnyArray, per: int) -> int:
    """How many chunks of keys a query tile uses at most."""
    first, end = bounds[..., 0], bounds[..., 3]
    return int(np.where(end > first, (end - 1) // per - first // per + 1, 1).max(initial=1))


def _as_lists(
    answers: work.Answers,
    bounds: AnyArray,
    patterns: tuple[work.Pattern, ...],
    frame: Frame,
    direction: Direction,
    runs_do: bool = False,
) -> work.Work | None:
    """None if they do not fit, or if all chunks' are a long constant where runs would do as well.

    `bounds`: ends of runs that have all tiles that are visited, known while tracing.
    """
    some, sizes = answers.some, frame.sizes
    n, nq, nk = some.shape
    per = sizes.chunk // sizes.key
    static = isinstance(some, np.ndarray)
    longest = int(some.sum(-1).max(initial=1)) if static else int((bounds[..., 3] - bounds[..., 0]).max(initial=1))
    steps = _steps(bounds, per) if direction == "forward" else 1
    if static and direction == "forward":
        used = np.add.reduceat(some, np.arange(0, nk, per), axis=-1)
        steps = int((used > 0).sum(-1).max(initial=1))
    longest = longest if direction == "forward" else min(longest, per)
    by_chunk = direction == "backward" and frame.chunks > 1
    words = n * nq * (longest + 4 * steps)
    if nk > 2**16 or words > MOST_SCALARS or (runs_do and by_chunk and words * frame.chunks > MOST_SCALARS):
        return None
    if by_chunk:
        scalars = work.lists_by_chunk(answers, longest, sizes)
    else:
        scalars = work.lists(answers, longest, steps, sizes)[: 3 if direction == "forward" else 2]
    counts = scalars[1].reshape(-1, 3)[:, 1:]
    alike = tuple(counts[0].tolist()) if static and (counts == counts[:1]).all() else None
    shape = work.Lists(answers.batch, answers.heads, nq, longest, steps, alike)
    flat = tuple(x.reshape(frame.chunks, -1) if by_chunk else x.reshape(-1) for x in scalars)
    return work.Work(flat, shape, patterns, by_chunk)


def _as_runs(
    ends: AnyArray,
    packed: Sequence[int] | None,
    bounds: AnyArray,
    entries: tuple[int, int],
    patterns: tuple[work.Pattern, ...],
    frame: Frame,
) -> work.Work:
    """`entries`: how many there are for batch elements and for heads.  `packed`: of each query tile the numbers of its
    partial tiles' patterns; None for 0.
    """
    per = frame.sizes.chunk // frame.sizes.key
    xp = work.numpy_of(ends)
    numbers = xp.zeros(ends.shape[1], xp.int32) if packed is None else np.array(packed, np.int64).astype(np.int32)
    scalars = xp.concatenate([ends, xp.broadcast_to(numbers[None, :, None], (*ends.shape[:2], 1))], -1).astype(xp.int32)
    alike = None
    if isinstance(scalars, np.ndarray) and (scalars == scalars[:1, :1]).all():
        alike = tuple(scalars[0, 0].tolist())
    steps = _steps(bounds, per)
    shape = work.Runs(*entries, frame.query_tiles, per, frame.chunks, steps, alike)
    return work.Work((scalars.reshape(-1),) if alike is None else (), shape, patterns)
