"""Tile sizes of a call, and how many heads and batch elements one step takes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from jattn import masks
from jattn._call.problem import tile_width
from jattn._call.targets import Target
from jattn._terms import block_tables
from jattn._terms.block_tables import Tiling
from jattn._terms.moved import moved
from jattn._terms.reach import conjuncts
from jattn.backends.blockwise import gpu
from jattn.backends.contract import Shaped, Spec
from jattn.backends.steps import Step, split
from jattn.scores import Product


@dataclasses.dataclass(frozen=True)
class Limits:
    """Found by `python -m bench cpu` on two cores.  A GPU has limits of its own, unless others than these are set."""

    step: int = 3 * 2**19
    """Numbers that a step holds, over heads and batch: fewer wake the threads too often, more leave the caches."""
    few: int = 64
    """Query rows, over all heads, up to which a head's keys are not worth a copy."""


class QueryStrip(NamedTuple):
    """Query rows that one step of the loop over them takes."""

    n: int | jax.Array
    step: Step
    """Its place, and all keys."""
    batch: int | jax.Array
    """The index of its batch step."""
    head: int | jax.Array
    """The index of its head step."""
    block: int | jax.Array
    """The index of its query block."""


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The sizes of one call and of its steps."""

    b: int
    h: int
    g: int
    query: Tiling
    key: Tiling
    batch: int  # how many batch elements a step takes together
    heads: int  # how many key heads a step takes together
    joined: bool = False  # whether key heads stay side by side, as in memory

    @property
    def group(self) -> int:
        return self.h // self.g

    @property
    def strips(self) -> int:
        """How many strips of query rows there are: query blocks, times steps over batch and heads."""
        return self.b // self.batch * (self.g // self.heads) * self.query.count

    def strip(self, n: int | jax.Array) -> QueryStrip:
        heads = self.g // self.heads
        rest, block = split(n, self.query.count)
        batch, head = (0, rest) if self.b == self.batch else split(rest, heads)
        at: dict[str, tuple[Any, int]] = {
            "b": (batch * self.batch, self.batch),
            "g": (head * self.heads, self.heads),
            "h": (head * self.heads * self.group, self.heads * self.group),
            "t": (self.query.start(block), self.query.block),
            "s": (0, self.key.length),
        }
        return QueryStrip(n, Step(at, self.group), batch, head, block)


def tile_sizes(t: int, s: int, group: int, mask: masks.Mask | None, width: int, joined: bool) -> tuple[int, int]:
    """Query and key rows of a tile on a CPU, from timings of `python -m bench cpu` on two cores.

    Products run faster the larger the tile; a mask wastes less the smaller it is, and a window much narrower than a
    tile wastes most of it; a score that holds `width` numbers a pair wants fewer pairs, and above 128 numbers its
    gradient takes several times as long unless a tile's keys are few.  The query heads of a group lie side by side in
    one product.  Keys that lie as in memory are read where they are, all at once, unless
    a mask may have some of them skipped.
    """
    if joined:
        return t, s if mask is None else 1024
    if width > 1:
        side = 128 if width <= 128 else 64
    elif mask is None:
        side = 1024
    else:
        side = min(512, max(128, _reach(mask)))
    return max(side // group, 16), side


def _reach(mask: masks.Mask | None) -> int:
    """How many keys a query sees at most, as far as windows of a fixed width say."""
    widths = [
        part.left + part.right + 1
        for part in conjuncts(mask)
        if isinstance(part, masks.Window) and isinstance(part.left, int) and isinstance(part.right, int)
    ]
    return min(widths, default=2**31)


def _even(length: int, block: int) -> int:
    """The block size at most `block` that divides `length` most evenly."""
    return -(-length // -(-length // block))


def _divisor(n: int, most: int) -> int:
    return max(x for x in range(1, n + 1) if n % x == 0 and (x <= most or x == 1))


def geometry(spec: Spec, q: Shaped, k: Shaped, v: Shaped, operands: Sequence[Shaped]) -> Geometry:
    """Sizes of the call's tiles; `spec.blocks` overrides the table."""
    settings = spec.backend.settings  # of whichever backend takes tangents from here
    limits = settings if isinstance(settings, Limits) else Limits()
    (t, h), (s, g) = q.shape[1:3], k.shape[1:3]
    lengths = [x.shape[0] for x in (q, k, v)]
    lengths += [x.shape[0] for x, axes in zip(operands, spec.signature.axes, strict=True) if "b" in axes]
    alike = math.gcd(*(n for n in lengths if n > 1)) or 1  # batch elements that one step can take
    terms = spec.terms(operands)
    masked, width, group = terms.mask is not None, tile_width(terms, q), h // g
    step, few = limits.step, limits.few
    if on_gpu(spec.target) and limits == Limits():
        step, few = gpu.step(spec.target.chip), 0  # a GPU's products take keys that lie as in memory
    joined = spec.blocks is None and g > 1 and t * h <= few and isinstance(terms.compare, Product)
    if spec.blocks is not None:
        rows, columns = spec.blocks
    elif on_gpu(spec.target):
        together = 1 if block_tables.ragged(moved(terms)) else alike
        seen = t + s if terms.mask is None else _reach(terms.mask)
        depth = q.shape[-1] + v.shape[-1]
        call = gpu.CallSizes(t, s, max(lengths) * g, together * g, group, width, depth, masked, seen)
        rows, columns = gpu.tile_sizes(call, spec.target.chip, step)
    else:
        rows, columns = tile_sizes(t, s, group, terms.mask, width, joined)
    query, key = (block_tables.Tiling(n, _even(n, block)) for n, block in ((t, rows), (s, columns)))
    if joined and not masked:
        return Geometry(max(lengths), h, g, query, key, alike, g, joined)
    held = group * query.block * key.block * width  # by the scores of a key head, and by its rows
    held += (group * query.block + key.block) * (q.shape[-1] + v.shape[-1])
    heads = g if joined else _divisor(g, step // held)
    batch = 1
    if heads == g and (key.count == 1 or not block_tables.ragged(moved(terms))):
        batch = _divisor(alike, step // (held * g))
    return Geometry(max(lengths), h, g, query, key, batch, heads, joined)


def on_gpu(target: Target) -> bool:
    """Whether tiles are cut for an NVIDIA GPU."""
    return target.capability is not None
