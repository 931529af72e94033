"""What a kernel does where: the list of key tiles that each query tile visits, and the strips inside a tile.

Query tile i visits key tiles: first the full ones, which never look at the mask, then the partial ones.  A partial tile
is worked off as a static list of strips, its pattern: in a causal tile on the diagonal each strip of rows sees the keys
before it whole and a square that needs the mask; what no row sees is in no strip.

Keys stand in fast memory a chunk at a time.  Which tiles are visited stands in scalars that the kernel reads ahead of
its grid: as a list for each query tile, or, where lists would not fit, as the ends of runs; without a mask nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from jattn_kernels.tiles.place import Index

Array = jax.Array | np.ndarray


class Stretch(NamedTuple):
    """A stretch of the other axis that a strip meets."""

    at: int
    size: int
    masked: bool


class Strip(NamedTuple):
    """A part of a tile's rows and what it meets in one go: rows and their keys, or (backward) keys and their rows."""

    at: int
    size: int
    stretches: tuple[Stretch, ...]


Pattern = tuple[Strip, ...]
Direction = Literal["forward", "backward"]


class TileSizes(Protocol):
    """What is common to the tile sizes of all kernel families."""

    @property
    def query(self) -> int:
        """Rows of a query tile."""
        ...

    @property
    def key(self) -> int:
        """Keys of a key tile."""
        ...

    @property
    def chunk(self) -> int:
        """Keys held in fast memory at once, a multiple of `key`."""
        ...

    @property
    def grain(self) -> int:
        """Side of the squares that partial tiles are cut into."""
        ...

    def whole(self, masked: bool, transposed: bool, rows_first: bool = False) -> Pattern:
        """The pattern of a tile that is all full or all masked; `transposed`: keys along rows."""
        ...


@runtime_checkable
class HasLengths(Protocol):
    """What is common to the lengths of a call as kernel families see them."""

    @property
    def t(self) -> int:
        """How many queries the call has."""
        ...

    @property
    def s(self) -> int:
        """How many keys the call has."""
        ...

    @property
    def padded(self) -> dict[str, int]:
        """Lengths of both, `t` and `s`, that tiles divide."""
        ...


class Frame(NamedTuple):
    """Lengths of a call and its tile sizes."""

    t: int
    s: int
    sizes: Any  # a family's own `TileSizes`

    @property
    def query_tiles(self) -> int:
        return -(-self.t // self.sizes.query)

    @property
    def key_tiles(self) -> int:
        return -(-self.s // self.sizes.key)

    @property
    def chunks(self) -> int:
        return -(-self.s // self.sizes.chunk)

    @property
    def padded(self) -> dict[str, int]:
        """Lengths that tiles and chunks divide."""
        return {"t": self.query_tiles * self.sizes.query, "s": self.chunks * self.sizes.chunk}


class Work(NamedTuple):
    """Which tiles are visited."""

    scalars: tuple[Array, ...]  # flat, since scalar memory pads the last axis of an array
    shape: Lists | Runs
    patterns: tuple[Pattern, ...]
    by_chunk: bool = False  # backward, where a call sees one chunk of keys: scalars have an axis of chunks in front


class Visits(NamedTuple):
    """The key tiles of one step of the grid."""

    full: Index  # how many are full
    partial: Index  # how many are partial
    tile: Callable[
        [Index, bool], tuple[Index, Index]
    ]  # (n, partial) -> the n-th of its kind and the number of its pattern


class Lists(NamedTuple):
    """A list of key tiles for every query tile, chunk by chunk, the full ones first.

    Scalars: key tile + 2^16 * pattern `[lines, longest]`; where a step's list begins, its full and its partial tiles
    `[lines, steps, 3]`; which chunk is in fast memory `[lines, steps]`.  A line is a query tile of one of the mask's
    batch elements and heads.
    """

    batch: int  # entries for batch elements: element b uses entry b % batch
    heads: int  # entries for heads: one for each, or one for all
    query_tiles: int
    longest: int
    steps: int  # how many steps of the grid a query tile has, each of which takes a chunk of keys
    alike: tuple[int, ...] | None  # how many full and partial tiles there are, where that is the same everywhere

    def line(self, b: Index, h: Index, i: Index) -> Index:
        """The number of query tile i of head h of batch element b."""
        return ((b % self.batch) * self.heads + (h if self.heads > 1 else 0)) * self.query_tiles + i

    def chunk(self, scalars: Sequence[jax.Array | jax.Ref], b: Index, h: Index, i: Index, c: Index) -> Index:
        """Which chunk is there at step c."""
        return scalars[2][self.line(b, h, i) * self.steps + c]

    def visits(
        self, scalars: Sequence[jax.Array | jax.Ref], b: Index, h: Index, i: Index, c: Index, chunk: Index | None = None
    ) -> Visits:
        """The key tiles of step c, or of a chunk, whose lists are then all that `scalars` has."""
        tiles, counts, *_ = scalars
        line, c = self.line(b, h, i), c if chunk is None else 0
        begin, full, partial = (counts[(line * self.steps + c) * 3 + n] for n in range(3))
        full, partial = self.alike or (full, partial)
        begin = line * self.longest + begin

        def tile(n: Index, partial: bool):
            entry = tiles[begin + full + n] if partial else tiles[begin + n]
            return entry & 0xFFFF, entry >> 16

        return Visits(full, partial, tile)


class Runs(NamedTuple):
    """For every query tile the ends of two runs of key tiles, of which the second, inside the first, is full.

    Scalars: the first key tile, the first full one, the one after the last full one, the one after the last, and the
    patterns of the partial ones `[lines, 5]`.
    """

    batch: int
    heads: int
    query_tiles: int
    per: int  # key tiles of a chunk
    chunks: int
    steps: int  # how many steps of the grid a query tile has, each of which takes a chunk of keys
    alike: tuple[int, ...] | None  # the five scalars, where they are the same everywhere: then none are read

    def line(self, b: Index, h: Index, i: Index) -> Index:
        """The number of query tile i of head h of batch element b."""
        return Lists.line(self, b, h, i)  # type: ignore[arg-type]

    def ends(self, scalars: Sequence[jax.Array | jax.Ref], b: Index, h: Index, i: Index) -> Sequence[Index]:
        at = self.line(b, h, i) * RUN
        return self.alike or tuple(scalars[0][at + n] for n in range(RUN))

    def chunk(self, scalars: Sequence[jax.Array | jax.Ref], b: Index, h: Index, i: Index, c: Index) -> Index:
        """Which chunk is there at step c; after the last that is used it stays."""
        if self.chunks == 1:
            return 0
        first, _, _, end, _ = self.ends(scalars, b, h, i)
        last = _divide(_greatest(end - 1, first), self.per)
        return _least(_divide(first, self.per) + c, last)

    def visits(
        self, scalars: Sequence[jax.Array | jax.Ref], b: Index, h: Index, i: Index, c: Index, chunk: Index | None = None
    ) -> Visits:
        """The key tiles of step c, or of a chunk."""
        *ends, patterns = self.ends(scalars, b, h, i)
        chunk = _divide(ends[0], self.per) + c if chunk is None else chunk
        begin = chunk * self.per if self.chunks > 1 else 0
        first, full, rest, end = self._inside(ends, chunk)
        before = full - first

        def tile(n: Index, partial: bool):
            if not partial:
                return begin + full + n, 0
            at = begin + jnp.where(n < before, first + n, rest + n - before)
            number = jnp.where(at < ends[1], at - ends[0], at - ends[2] + ends[1] - ends[0])
            return at, (patterns >> (number * BITS)) & (2**BITS - 1)

        return Visits(rest - full, before + end - rest, tile)

    def _inside(self, ends: Sequence[Index], chunk: Index) -> Sequence[Index]:
        """The ends as far as they are in a chunk, counted from its beginning."""
        if self.chunks == 1:
            return ends
        if self.alike is not None:
            every = {tuple(min(max(x - c * self.per, 0), self.per) for x in ends) for c in range(self.chunks)}
            if len(every) == 1:
                return every.pop()
        return [_least(_greatest(x - chunk * self.per, 0), self.per) for x in ends]


class Answers(NamedTuple):
    """Which tiles are visited, which of them are full, and the pattern of each partial one: `[n, query tiles, key
    tiles]`, where n counts the mask's batch elements times its heads."""

    some: Array
    every: Array
    number: Array
    batch: int
    heads: int


EMPTY, PARTIAL, FULL = range(3)
"""The kinds of a rectangle of scores: none, some or all of its pairs attend."""

RUN = 5  # scalars of a query tile in `Runs`
BITS = 2  # bits of a pattern's number
MOST_PARTIAL = 32 // BITS  # partial tiles whose patterns fit in a scalar


def numpy_of(x: Array) -> Any:  # modules have no type that says which functions they have
    """NumPy or jnp, whichever an array is of."""
    return np if isinstance(x, np.ndarray) else jnp


def kind_of(some: Any, every: Any) -> Any:  # arrays of NumPy or of JAX, and the result is of the same
    """`EMPTY`, `PARTIAL` or `FULL` for each rectangle, of which `some` pairs attend, or `every` one does; int8."""
    xp = numpy_of(some)
    return xp.where(some, xp.where(every, FULL, PARTIAL), EMPTY).astype(xp.int8)


def _divide(a: Index, b: int) -> Index:
    return a // b if isinstance(a, int) else jax.lax.div(a, jnp.int32(b))


def _least(a: Index, b: Index) -> Index:
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else jnp.minimum(a, b)


def _greatest(a: Index, b: Index) -> Index:
    return max(a, b) if isinstance(a, int) and isinstance(b, int) else jnp.maximum(a, b)


def lists(answers: Answers, longest: int, steps: int, sizes: TileSizes) -> tuple[Array, ...]:
    """`Lists`' scalars, not yet flat, in NumPy or jnp, as the answers are.

    Chunks that a query tile does not use are left out of its steps, of which there are `steps`.
    """
    some, every, pattern, *_ = answers
    xp = numpy_of(some)
    nk = some.shape[-1]
    per = sizes.chunk // sizes.key
    nc = -(-nk // per)
    full, partial = some & every, some & ~every
    chunk = xp.arange(nk) // per
    order = xp.argsort(xp.where(some, 2 * chunk + partial, 2 * nc), axis=-1, stable=True)[..., :longest]
    tiles = order + (xp.take_along_axis(xp.broadcast_to(pattern, some.shape), order, -1) << 16)
    full, partial = (
        xp.stack([x[..., c * per : (c + 1) * per].sum(-1) for c in range(nc)], -1) for x in (full, partial)
    )
    begin = xp.cumsum(full + partial, axis=-1) - full - partial
    used = full + partial > 0
    live = xp.arange(nc) < used.sum(-1, keepdims=True)
    # the chunks in use come first, then the last of them again: what stands in fast memory stays there
    step = xp.minimum(xp.arange(nc), xp.maximum(used.sum(-1, keepdims=True) - 1, 0))
    chunks = xp.take_along_axis(xp.argsort(~used, axis=-1, stable=True), step, axis=-1)
    counts = xp.stack([xp.where(live, xp.take_along_axis(x, chunks, -1), 0) for x in (begin, full, partial)], -1)
    return tuple(x.astype(xp.int32) for x in (tiles, counts[..., :steps, :], chunks[..., :steps]))


def lists_by_chunk(answers: Answers, longest: int, sizes: TileSizes) -> tuple[Array, ...]:
    """The scalars of `Lists` for each chunk, `[chunks, n, query tiles, ..]`; `longest` is of one chunk."""
    shape, per = answers.some.shape, sizes.chunk // sizes.key
    xp = numpy_of(answers.some)
    chunks = -(-shape[-1] // per)

    def apart(x: Array):
        x = xp.pad(xp.broadcast_to(x, shape), ((0, 0), (0, 0), (0, chunks * per - shape[-1])))
        return xp.moveaxis(x.reshape(*shape[:2], chunks, per), 2, 0)

    some, every, number = map(apart, answers[:3])
    tiles, counts, _ = lists(answers._replace(some=some, every=every, number=number), longest, 1, sizes)
    begin = per * xp.arange(chunks, dtype=xp.int32)
    return tiles + begin[:, None, None, None], counts


def runs(answers: Answers) -> Array:
    """`Runs`' scalars but the patterns, `[n, query tiles, 4]`.

    What is between two tiles that are visited is visited too, and looks at the mask; of the full tiles the longest run
    does not.
    """
    some, every = answers.some, answers.every
    xp = numpy_of(some)
    nk = some.shape[-1]
    at = xp.arange(nk)
    seen = some.any(-1)
    first = xp.where(seen, some.argmax(-1), 0)
    end = xp.where(seen, nk - some[..., ::-1].argmax(-1), 0)
    broken = xp.where(every & some, -1, at)
    last = np.maximum.accumulate(broken, -1) if xp is np else jax.lax.cummax(broken, axis=broken.ndim - 1)
    length = at - last
    longest, full = length.max(-1), length.argmax(-1) + 1
    rest = xp.where(longest > 0, full, end)
    return xp.stack([first, rest - longest, rest, end], -1).astype(xp.int32)
