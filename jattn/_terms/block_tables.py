"""Block tables: for every query block, which key blocks are visited and which of them need the mask.

A mask answers for whole blocks from the ranges of `i`, `j` and its operands: may any pair attend (`some`), must every
pair attend (`every`).  Both are bounds on the safe side: a block is skipped only if it is certainly empty, and goes
unmasked only if it is certainly full.  Static masks answer in NumPy while tracing, the others in jnp at run time.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jattn import _terms
from jattn._terms.operand import AnyArray

if TYPE_CHECKING:
    from jattn.masks import Mask


class Range(NamedTuple):
    """The least and the greatest value in each block, both ends included.

    `Mask.blocks(i, j)` gets one for the positions of the queries and one for those of the keys; operands that the mask
    holds are ranges too while it is asked.

    >>> from jattn import masks
    >>> import numpy as np
    >>> tens = masks.Range(np.array([0, 10, 20]), np.array([9, 19, 29]))  # three blocks of ten positions
    """

    lo: AnyArray
    """Broadcastable to `[b, h, query blocks, key blocks]`; NumPy's where it is known while tracing."""
    hi: AnyArray
    """The greatest number, likewise."""


def ends(value: int | Range) -> Range | tuple[int, int]:
    """The least and the greatest of a static number, or of an operand in a block."""
    return value if isinstance(value, Range) else (value, value)


class Answer(NamedTuple):
    """What a mask says of whole blocks: may some pair attend, does every pair attend.  Answers join with `&`, `|`, `~`.

    Both are bounds on the safe side.  A block is skipped if `some` is False, and the mask is not looked at in it if
    `every` is True; so True and False are true of any mask.  See `jattn.masks.Mask` for one that knows better.

    >>> from jattn import masks
    >>> import numpy as np
    >>> one = masks.Answer(some=np.array([True, False]), every=np.array([True, False]))
    >>> other = masks.Answer(some=np.array(True), every=np.array(False))
    >>> (one & other).some.tolist(), (one | other).every.tolist(), (~one).every.tolist()
    ([True, False], [True, False], [False, True])
    """

    some: AnyArray
    """Booleans, broadcastable to `[b, h, query blocks, key blocks]`: False where certainly no pair attends."""
    every: AnyArray
    """Booleans that broadcast as those of `some` do: True where certainly every pair attends."""

    def __and__(self, other: Answer) -> Answer:
        return Answer(self.some & other.some, self.every & other.every)

    def __or__(self, other: Answer) -> Answer:
        return Answer(self.some | other.some, self.every | other.every)

    def __invert__(self) -> Answer:
        return Answer(~self.every, ~self.some)


MOST_ENTRIES = 2**20  # a static table is a constant of the program, and so has no more


def number_at(array: AnyArray, index: Sequence[int | jax.Array]) -> jax.Array:
    """array[index] for an index within bounds: whether it might be negative is not looked at."""
    size = [1] * array.ndim
    at = [jnp.asarray(x, jnp.int32) for x in index]
    return jax.lax.dynamic_slice(jnp.asarray(array), at, size, allow_negative_indices=False).reshape(())


class BlockRuns(NamedTuple):
    """Rows of a table whose visited blocks are a run, and whose full blocks are a run within it."""

    visited: AnyArray  # [1, 1, query blocks] int32: the first block that is visited
    full: AnyArray  # [1, 1, query blocks] int32: the first full one


class BlockTable(NamedTuple):
    """For every query block: its full key blocks, then its partial ones.  Leading axes `[b or 1, head groups or 1]`."""

    index: AnyArray | BlockRuns
    """`[.., .., query blocks, longest row]` int32: the first `full + partial` entries of a row count."""
    full: AnyArray
    """`[.., .., query blocks]` int32."""
    partial: AnyArray
    """`[.., .., query blocks]` int32."""

    @property
    def in_order(self) -> bool:
        """Whether every row's n-th block is block n, as under a causal mask: no index needs to be looked up."""
        if not isinstance(self.index, np.ndarray):
            return False
        n = np.arange(self.index.shape[-1])
        return bool(((self.index == n) | (n >= (self.full + self.partial)[..., None])).all())

    def block(self, row: Sequence[int | jax.Array], n: int | jax.Array) -> jax.Array:
        """The n-th key block of a row."""
        if not isinstance(self.index, BlockRuns):
            return number_at(self.index, (*row, n))
        visited, first, count = (number_at(x, row) for x in (*self.index, self.full))
        partial = visited + n - count
        return jnp.where(n < count, first + n, jnp.where(partial >= first, partial + count, partial))


class Tiling(NamedTuple):
    """Blocks of one axis.  The last block is moved back to fit; what it repeats is not `fresh`.  Or it hangs over."""

    length: int
    block: int
    overhang: bool = False

    @property
    def count(self) -> int:
        return -(-self.length // self.block)

    @property
    def whole(self) -> bool:
        return self.length % self.block == 0

    def start(self, n: int | jax.Array) -> int | jax.Array:
        """First position of block n."""
        return n * self.block if self.whole else jnp.minimum(n * self.block, self.length - self.block)

    def range(self) -> Range:
        lo = np.arange(self.count) * self.block
        if not self.overhang:
            lo = np.minimum(lo, self.length - self.block)
        return Range(lo, np.minimum(lo + self.block, self.length) - 1)


def _in_blocks(array: AnyArray, dim: int, tiling: Tiling) -> jax.Array:
    """`[.., length, ..]` as `[.., blocks, block, ..]`; no block has numbers that are not its own."""
    whole = tiling.count * tiling.block
    if not tiling.whole and tiling.overhang:
        rest = [(0, whole - tiling.length if n == dim else 0) for n in range(array.ndim)]
        array = jnp.pad(array, rest, mode="edge")
    elif not tiling.whole:
        before = jax.lax.slice_in_dim(array, 0, whole - tiling.block, axis=dim)
        last = jax.lax.slice_in_dim(array, tiling.length - tiling.block, tiling.length, axis=dim)
        array = jnp.concatenate([before, last], dim)
    return jnp.reshape(array, (*array.shape[:dim], tiling.count, tiling.block, *array.shape[dim + 1 :]))


def _operand_range(array: AnyArray, axes: str, tilings: dict[str, Tiling]) -> Range:
    """Minima and maxima of an operand over the blocks of its `t` and `s` axes.

    Where a block holds a NaN they are -inf and inf: of such a block nothing is certain, and it is looked at.
    """
    lo = hi = array
    if jnp.issubdtype(array.dtype, jnp.floating):
        lo, hi = (jnp.where(jnp.isnan(array), x, array) for x in (-jnp.inf, jnp.inf))
    for dim, axis in enumerate(axes):
        if axis in tilings:
            lo, hi = (_in_blocks(x, dim, tilings[axis]) for x in (lo, hi))
            lo, hi = lo.min(dim + 1), hi.max(dim + 1)
    shape = tuple(lo.shape[axes.index(a)] if a in axes else 1 for a in _terms.AXES)
    return Range(lo.reshape(shape), hi.reshape(shape))


def _spread(ranges: Range, longest: int) -> Range:
    """Ranges for as many batch elements as any operand of the mask has: element b uses entry b % length."""
    if ranges.lo.shape[0] in (1, longest):
        return ranges
    return Range(*(jnp.tile(x, (longest // x.shape[0], 1, 1, 1)) for x in ranges))


def answers(mask: Mask | None, query: Tiling, key: Tiling, *, rows: slice = slice(None)) -> Answer:
    """The mask's answer for every block, `[b or 1, h or 1, query blocks, key blocks]`; `rows` are the query blocks to
    ask for, all or, of a static mask, some."""
    i, j = Range(*(x[rows] for x in query.range())), key.range()
    i, j = Range(*(x[:, None] for x in i)), Range(*(x[None] for x in j))
    if mask is None:
        answer = Answer(np.array(True), np.array(True))
    else:
        arrays, signature = _terms.split(mask)
        longest = max((a.shape[0] for a, x in zip(arrays, signature.axes, strict=True) if "b" in x), default=1)
        ranges = [  # an operand that has further axes has no range
            _spread(_operand_range(a, x, {"t": query, "s": key}), longest) if a.ndim == len(x) else None
            for a, x in zip(arrays, signature.axes, strict=True)
        ]
        answer = signature.fill(ranges).blocks(i, j)
    every = answer.every
    if not key.whole:  # the last key block repeats keys of the one before, or has too few: it must look at positions
        every = every & (np.arange(key.count) < key.count - 1)
    wide = tuple(x[(None,) * (4 - x.ndim)] if x.ndim else x[None, None, None, None] for x in (answer.some, every))
    shape = np.broadcast_shapes(*(x.shape for x in wide), (1, 1, i.lo.size, key.count))
    static = all(isinstance(x, (np.ndarray, np.generic)) for x in wide)
    some, every = (np.broadcast_to(x, shape) if static else jnp.broadcast_to(x, shape) for x in wide)
    return Answer(some, every)


def table(
    mask: Mask | None, query: Tiling, key: Tiling, batch: int = 1, heads: int = 1, most: int = MOST_ENTRIES
) -> BlockTable:
    """The block table, a row for every `batch` batch elements and `heads` query heads, as far as the mask tells them
    apart.

    It is NumPy where the mask is static, jnp where it is known only at run time.  Of a static mask with more than
    `most` blocks it is the ends of runs.
    """
    if not jax.tree.leaves(mask):
        return _static_table(mask, query, key, most)
    return tabulate(answers(mask, query, key), batch, heads)


def ragged(mask: Mask | None) -> bool:
    """Whether the mask, and so the table, may differ between batch elements."""
    return any("b" in axes for axes in _terms.split(mask)[1].axes)


@functools.lru_cache(maxsize=256)
def _static_table(mask: Mask | None, query: Tiling, key: Tiling, most: int) -> BlockTable:
    if query.count * key.count <= most:
        return tabulate(answers(mask, query, key), 1, 1)
    rows = max(1, 4 * MOST_ENTRIES // key.count)
    parts = [_run_table(answers(mask, query, key, rows=slice(n, n + rows))) for n in range(0, query.count, rows)]
    return jax.tree.map(lambda *x: np.concatenate(x, axis=-1), *parts)


def _run_table(answer: Answer) -> BlockTable:
    """A table of three numbers a row.  Where the full blocks are no run all that is visited counts as partial, and what
    lies between two visited blocks is visited: a mask of many small holes, on a very long sequence."""
    some, every = answer.some, answer.every & answer.some

    def run(blocks: AnyArray) -> tuple[AnyArray, AnyArray]:
        first = blocks.argmax(-1)
        past = np.where(blocks.any(-1), blocks.shape[-1] - blocks[..., ::-1].argmax(-1), first)
        return first, past

    (visited, end), (full, full_end) = run(some), run(every)
    count = np.where(every.sum(-1) == full_end - full, full_end - full, 0)
    parts = BlockRuns(visited, full), count, end - visited - count
    return BlockTable(*jax.tree.map(lambda x: x.astype(np.int32), parts))


def tabulate(answer: Answer, batch: int = 1, heads: int = 1) -> BlockTable:
    """The table of a mask's answers, a row for every `batch` batch elements and `heads` query heads."""
    some: Any = answer.some
    every: Any = answer.every
    xp = np if isinstance(some, np.ndarray) else jnp
    for axis, size in ((0, batch), (1, heads)):
        if some.shape[axis] > 1:
            shape = (*some.shape[:axis], -1, size, *some.shape[axis + 1 :])
            some, every = some.reshape(shape).any(axis + 1), every.reshape(shape).all(axis + 1)
    every = every & some
    rank = xp.where(every, 0, xp.where(some, 1, 2))
    index = xp.argsort(rank, axis=-1, stable=True).astype(np.int32)
    full, partial = every.sum(-1).astype(np.int32), (some & ~every).sum(-1).astype(np.int32)
    if xp is np:
        index = index[..., : max(1, int((full + partial).max()))]
    return BlockTable(index, full, partial)
