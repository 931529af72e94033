"""Tile sizes of a call on TPU, and masks as lists of work."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jattn_kernels import tables
from jattn_kernels.tpu import work
from jattn_kernels.tpu.operands import Frame
from jattn_kernels.tpu.work import LANES, Sizes

from jattn import _blocks, masks
from jattn._problem import Spec
from jattn._terms import Operand
from jattn.backends._tpu_terms import parts_of, terms_of

MIB = 2**20
MEMORY = {"v4": 16 * MIB, "v5e": 100 * MIB, "v5p": 60 * MIB, "v6e": 100 * MIB, "tpu7x": 56 * MIB}
"""Fast memory that a kernel may use: what each chip's compiler grants, less what it keeps for itself."""
_PATTERNS = 4  # more kinds of partial tiles than this are worked off as masked throughout: each is code of its own
_SCALARS = 2**17  # entries of a work list: scalar memory is small


def case_of(spec: Spec, upright: bool) -> tuple[str, str]:
    """Mask class and pass, as the tables name them."""
    mask = terms_of(spec).mask
    window = any(isinstance(x.left, int) for x in parts_of(mask, masks.Window))
    return "full" if mask is None else "window" if window else "causal", "forward" if upright else "backward"


def tile_sizes(spec: Spec, q: Any, k: Any, v: Any, upright: bool) -> tuple[Sizes, str]:
    """The tile sizes of a call and where they come from."""
    t, s, d = q.shape[1], k.shape[1], max(q.shape[-1], v.shape[-1])
    found = tables.find(tables.entries(), spec.target.chip, d, max(t, s), *case_of(spec, upright))
    sizes, source = Sizes(**found.entry.sizes), str(found)
    query, key, chunk = sizes.query, sizes.key, sizes.chunk
    if spec.blocks is not None:
        (query, key), source = spec.blocks, "as asked for"
    if any("t" in axes and "s" in axes for axes in spec.signature.axes):  # two of their blocks in an eighth of memory
        query, key = min(query, 512), min(key, 512)
        chunk = min(chunk, MEMORY.get(spec.target.chip or "", 16 * MIB) // (8 * 8 * query))
    step = sizes.step
    terms = terms_of(spec)
    if terms.mods or terms.gates or isinstance(terms.compare.scale, Operand):  # several numbers for each score
        step, chunk = min(step, 256), chunk // 2
    query, key = (min(x, -(-n // LANES) * LANES) for x, n in ((query, t), (key, s)))
    query, key = (-(-x // LANES) * LANES for x in (query, key))
    most = chunk * found.entry.d * 2 // (d * max(q.dtype.itemsize, k.dtype.itemsize, v.dtype.itemsize))
    chunk = max(key, min(chunk, most, -(-s // key) * key) // key * key)
    rows = sizes.height if query % sizes.height == 0 else 0
    return dataclasses.replace(sizes, query=query, key=key, step=math.gcd(key, step), chunk=chunk, rows=rows), source


def work_of(mask: Any, frame: Frame, upright: bool) -> work.Work:
    if not jax.tree.leaves(mask):
        return static_work(mask, frame, upright)
    query, key = (_blocks.Tiling(n, x, overhang=True) for n, x in lengths(frame))
    some, every = (jnp.asarray(x) for x in _blocks.answers(mask, query, key))
    for axis in (1, 0):  # lists for single heads and batch elements only as far as scalar memory goes
        if some.size > _SCALARS:
            some, every = some.any(axis, keepdims=True), every.all(axis, keepdims=True)
    batch, heads = some.shape[:2]
    some, every = (x.reshape(-1, *x.shape[2:]) for x in (some, every & some))
    found = work.visits(some, every, jnp.int32(0), frame.sizes, upright)
    return work.Work(*found, batch, heads, (frame.sizes.whole(True, upright),))


def lengths(frame: Frame) -> tuple[tuple[int, int], tuple[int, int]]:
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
            for a, b in itertools.pairwise(edges) if line[a]
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
        for one in step.pieces:
            if run and run[-1].at + run[-1].size != one.at:
                found.append(step._replace(pieces=tuple(run)))
                run = []
            run.append(one)
        found.append(step._replace(pieces=tuple(run)))
    return tuple(found)
