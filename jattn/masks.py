"""Masks: which keys a query may attend to.  They compose with `&`, `|` and `~`, and are never stored as `[t, s]`.

Positions: `i` of the query and `j` of the key, both counted from the start.  Each mask is a frozen dataclass pytree
with two methods: `__call__(i, j)`, True where the pair attends, and `blocks(i, j)`, the answer for whole blocks.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jattn._terms import Operand, Term, as_array, indices, number, term, wide
from jattn._terms.block_tables import Answer, Range
from jattn._terms.closures import Closure
from jattn.mods import function_parts


class Mask(Term):
    """What `attention(mask=...)` takes.  Make one with the functions of this module, or a subclass of your own."""

    def __call__(self, i: Any, j: Any) -> Any:
        raise NotImplementedError

    def blocks(self, i: Range, j: Range) -> Answer:
        """Safe for any mask: look at every pair."""
        del i, j
        return Answer(np.True_, np.False_)

    __array_ufunc__ = None  # `array & mask` is this class's to answer, not NumPy's

    def __and__(self, other: Any) -> Mask:
        return _joined(And, self, other)

    def __or__(self, other: Any) -> Mask:
        return _joined(Or, self, other)

    __rand__, __ror__ = __and__, __or__

    def __invert__(self) -> Mask:
        return Not(self)

    def __bool__(self) -> bool:
        raise TypeError("a mask has no truth value: combine masks with & | ~, not with `and`, `or`, `not`")


def _joined(kind: type, left: Mask, right: Any) -> Mask:
    """`left & right` or `left | right`."""
    if isinstance(right, (np.ndarray, jax.Array)):
        raise TypeError(
            f"& and | join masks, got an array {list(right.shape)}: make a mask of it with jattn.masks.dense"
        )
    return kind(left, right) if isinstance(right, Mask) else NotImplemented


@term
class And(Mask):
    left: Mask
    right: Mask

    def __call__(self, i, j):
        return self.left(i, j) & self.right(i, j)

    def blocks(self, i, j):
        return self.left.blocks(i, j) & self.right.blocks(i, j)


@term
class Or(Mask):
    left: Mask
    right: Mask

    def __call__(self, i, j):
        return self.left(i, j) | self.right(i, j)

    def blocks(self, i, j):
        return self.left.blocks(i, j) | self.right.blocks(i, j)


@term
class Not(Mask):
    mask: Mask

    def __call__(self, i, j):
        return ~self.mask(i, j)

    def blocks(self, i, j):
        return ~self.mask.blocks(i, j)


def _range(value: Any) -> Range:
    """A static number as the range that holds only it."""
    return value if isinstance(value, Range) else Range(value, value)


_FAR = 2**31 - 1  # the greatest position there can be


def _shifted(position: Any, by: Any) -> Any:
    """position + by, at most the greatest position: in int32 a sum beyond it would come out negative."""
    if isinstance(by, int) and abs(by) < 2**30:  # positions themselves stay far below that
        return position + by
    if isinstance(position, np.ndarray) and isinstance(by, int):
        return np.minimum(position.astype(np.int64) + by, _FAR)
    if jnp.issubdtype(position.dtype, jnp.floating):
        return position + by
    by = jnp.asarray(by, jnp.int32)
    return jnp.minimum(position, _FAR - jnp.maximum(by, 0)) + by


def _negative(value: Any) -> Any:
    """-value of an int, an array or a range of either."""
    return Range(-value.hi, -value.lo) if isinstance(value, Range) else -value


@term
class Window(Mask):
    """-left <= j - i <= right; None leaves a side open."""

    left: Any
    right: Any

    def __call__(self, i, j):
        inside = True
        if self.left is not None:
            inside = j >= _shifted(i, _negative(self.left))
        if self.right is not None:
            inside = (j <= _shifted(i, self.right)) & inside
        return inside | jnp.zeros(jnp.broadcast_shapes(i.shape, j.shape), bool)

    def blocks(self, i, j):
        answer = Answer(np.True_, np.True_)
        if self.left is not None:
            first = _range(_negative(self.left))
            answer &= Answer(j.hi >= _shifted(i.lo, first.lo), j.lo >= _shifted(i.hi, first.hi))
        if self.right is not None:
            last = _range(self.right)
            answer &= Answer(j.lo <= _shifted(i.hi, last.hi), j.hi <= _shifted(i.lo, last.lo))
        return answer


def causal(offset: Any = 0) -> Mask:
    """j <= i + offset: a query sees the keys up to its own position (top-left aligned, as in jax.nn).

    `offset` is an int, or an integer scalar array where it is known only at run time (a decoding step).  For queries
    that are the last t of s positions, offset = s - t.  An int is part of the compiled program, which skips blocks by
    it, so another one compiles anew: where it changes with every call, give `jnp.int32(offset)`.

    >>> import numpy as np, jattn
    >>> print(jattn.masks.causal()(np.arange(3)[:, None], np.arange(3)[None]).astype(int))
    [[1 0 0]
     [1 1 0]
     [1 1 1]]
    """
    return Window(None, _side(offset, "offset"))


def window(left: Any, right: Any = 0) -> Mask:
    """i - left <= j <= i + right: sliding-window (local) attention (Beltagy et al. 2020).

    `left` and `right` are ints, or integer scalar arrays known at run time; None, and what reaches past the greatest
    position 2^31 - 1, leaves a side open.

    Raises ValueError where left + right < 0: no key would be left.

    >>> import numpy as np, jattn
    >>> print(jattn.masks.window(1)(np.arange(3)[:, None], np.arange(3)[None]).astype(int))
    [[1 0 0]
     [1 1 0]
     [0 1 1]]
    """
    if isinstance(left, (int, np.integer)) and isinstance(right, (int, np.integer)) and int(left) + int(right) < 0:
        raise ValueError(f"a window must leave a key: left + right must be >= 0, got left {left}, right {right}")
    return Window(_side(left, "left"), _side(right, "right"))


def _side(value: Any, name: str) -> Any:
    """A side of a window: an int, an operand, or None where it is open."""
    value = None if value is None else _integer(value, name)
    return None if isinstance(value, int) and value >= _FAR else value


@term
class Around(Mask):
    """A window around the query's centre in the place of its own position."""

    center: Any
    window: Mask

    def __call__(self, i, j):
        del i
        return self.window(self.center, j)

    def blocks(self, i, j):
        del i
        return self.window.blocks(self.center, j)


def around(center: Any, left: Any, right: Any) -> Mask:
    """center - left <= j <= center + right: a window around centres known at run time (local-p, Luong et al. 2015).

    `center` `[t]`, `[b, t]` or `[b, h, t]`, in positions of the keys, whole or not; `left` and `right` as in `window`.
    Blocks that no centre of a block of queries comes near are skipped.  A mask passes no gradient: that of the centre
    comes through a gate, `gates.gaussian(center, sigma)`.

    >>> import numpy as np, jattn
    >>> mask = jattn.masks.around(np.array([0.5, 3.0]), 1, 1)  # query 0 sees keys 0 and 1; query 1 sees 2, 3 and 4
    """
    center = center if isinstance(center, (np.ndarray, jax.Array)) else jnp.asarray(center)
    if center.ndim not in (1, 2, 3) or center.dtype == bool:
        raise ValueError(f"center must be numbers [t], [b, t] or [b, h, t], got {center.dtype}{list(center.shape)}")
    # wide, so that blocks are judged by the numbers that pairs are judged by
    center = Operand(jax.lax.stop_gradient(wide(center)), ("t", "bt", "bht")[center.ndim - 1])
    return Around(center, window(left, right))


def _integer(value: Any, name: str) -> Any:
    """An int or an int32 operand, within the positions that there can be."""
    value = number(value, name)
    if isinstance(value, float) or (isinstance(value, Operand) and not jnp.issubdtype(value.array.dtype, jnp.integer)):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if isinstance(value, Operand):
        return Operand(_int32(value.array), value.axes)
    return max(-_FAR, min(value, _FAR))


def _int32(array: Any) -> Any:
    """Integers as int32, those beyond it as its least or greatest."""
    if array.dtype in (jnp.int8, jnp.int16, jnp.int32, jnp.uint8, jnp.uint16):
        return array.astype(jnp.int32)
    least = 0 if jnp.issubdtype(array.dtype, jnp.unsignedinteger) else -_FAR
    xp = np if isinstance(array, np.ndarray) else jnp
    return xp.clip(array, xp.asarray(least, array.dtype), xp.asarray(_FAR, array.dtype)).astype(jnp.int32)


@term
class Segments(Mask):
    query: Any
    key: Any

    def __call__(self, i, j):
        del i, j
        return self.query == self.key

    def blocks(self, i, j):
        del i, j
        q, k = self.query, self.key
        return Answer((q.lo <= k.hi) & (k.lo <= q.hi), (q.lo == k.hi) & (k.lo == q.hi))


def segments(q_ids: Any, kv_ids: Any = None) -> Mask:
    """q_ids[b, i] == kv_ids[b, j]: packed sequences attend only to themselves.

    Integer arrays `[b, t]` and `[b, s]`, or `[t]` and `[s]` for all batch elements; `kv_ids` defaults to `q_ids`.  Ids
    that come in runs (packed documents) let whole blocks be skipped, at run time.
    """
    kv_ids = q_ids if kv_ids is None else kv_ids
    return Segments(_ids(q_ids, "q_ids", "t"), _ids(kv_ids, "kv_ids", "s"))


def _ids(array: Any, name: str, axis: str) -> Operand:
    array = as_array(array, name)
    if array.ndim not in (1, 2) or not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(
            f"{name} must be integers of shape [b, {axis}] or [{axis}], got {array.dtype}{list(array.shape)}"
        )
    return Operand(array, axis if array.ndim == 1 else "b" + axis)


@term
class Before(Mask):
    """Key (or query) positions below a bound."""

    limit: Any
    axis: str

    def __call__(self, i, j):
        zero = jnp.zeros(jnp.broadcast_shapes(i.shape, j.shape), jnp.int32)
        return (i if self.axis == "t" else j) + zero < self.limit

    def blocks(self, i, j):
        position, limit = (i if self.axis == "t" else j), _range(self.limit)
        return Answer(position.lo < limit.hi, position.hi < limit.lo)


def prefix(length: Any) -> Mask:
    """j < length: an int, or integers `[b]`.  `prefix(n) | causal()` is the prefix-LM mask (Raffel et al. 2020)."""
    return Before(lengths_operand(length, "length"), "s")


def lengths(kv: Any, q: Any = None) -> Mask:
    """j < kv[b] and, if given, i < q[b]: padded batches.  Rows past `q` see nothing and give 0."""
    mask = prefix(kv)
    return mask if q is None else mask & Before(lengths_operand(q, "q"), "t")


def lengths_operand(value: Any, name: str) -> Any:
    """An int, or integers `[b]` as an operand."""
    if isinstance(value, (list, tuple)):
        value = np.asarray(value)
    if isinstance(value, (np.ndarray, jax.Array)) and value.ndim:
        if value.ndim > 1 or not jnp.issubdtype(value.dtype, jnp.integer):
            raise TypeError(f"{name} must be an int or integers [b], got {value.dtype}{list(value.shape)}")
        return Operand(_int32(value), "b")
    return _integer(value, name)


@term
class Dilated(Mask):
    stride: int

    def __call__(self, i, j):
        return (i - j) % self.stride == 0

    def blocks(self, i, j):
        lo, hi = i.lo - j.hi, i.hi - j.lo
        return Answer(hi // self.stride * self.stride >= lo, (lo == hi) & (lo % self.stride == 0) | (self.stride == 1))


def dilated(stride: int) -> Mask:
    """(i - j) % stride == 0: every stride-th key, counted from the query (Child et al. 2019)."""
    if not isinstance(stride, (int, np.integer)) or stride < 1:
        raise ValueError(f"stride must be an int >= 1, got {stride!r}")
    return Dilated(min(int(stride), _FAR))


@dataclasses.dataclass(frozen=True)
class _Layout:
    """A static boolean array with value equality, so that it can be part of a compiled program's key."""

    shape: tuple[int, ...]
    bits: bytes

    @property
    def array(self) -> np.ndarray:
        return np.frombuffer(self.bits, bool).reshape(self.shape)


@term
class Blocks(Mask):
    layout: _Layout
    block: int
    head: Any  # the operand that says which head this tile is of; None where the layout is the same for all

    def bound(self, b, h):
        del b
        return self if self.layout.array.ndim == 2 else dataclasses.replace(self, head=indices(h, "h"))

    def __call__(self, i, j):
        layout = jnp.asarray(self.layout.array)
        layout = layout if self.head is None else layout[self.head]
        return layout[i // self.block, j // self.block]

    def blocks(self, i, j):
        if not isinstance(i.lo, np.ndarray):  # positions known only at run time
            return super().blocks(i, j)
        # sums over rectangles of layout cells, from a two-dimensional prefix sum
        layout = self.layout.array
        corner = np.zeros((*layout.shape[:-2], layout.shape[-2] + 1, layout.shape[-1] + 1), np.int64)
        corner[..., 1:, 1:] = layout.cumsum(-2).cumsum(-1)
        (r0, r1), (c0, c1) = ((np.asarray(x.lo) // self.block, np.asarray(x.hi) // self.block + 1) for x in (i, j))
        inside = corner[..., r1, c1] - corner[..., r0, c1] - corner[..., r1, c0] + corner[..., r0, c0]
        return Answer(inside > 0, inside == (r1 - r0) * (c1 - c0))


def blocks(layout: Any, block: int) -> Mask:
    """layout[i // block, j // block]: block-sparse attention from a static boolean array, `[.., ..]` or `[h, ..,
    ..]`."""
    array = np.asarray(layout)
    if array.ndim not in (2, 3) or array.dtype != bool:
        raise ValueError(
            f"layout must be a boolean array [.., ..] or [h, .., ..], got {array.dtype}{list(array.shape)}"
        )
    if not isinstance(block, (int, np.integer)) or block < 1:
        raise ValueError(f"block must be an int >= 1, got {block!r}")
    return Blocks(_Layout(array.shape, array.tobytes()), int(block), None)


@term
class Dense(Mask):
    array: Any

    def __call__(self, i, j):
        return self.array | jnp.zeros(jnp.broadcast_shapes(i.shape, j.shape), bool)

    def blocks(self, i, j):
        del i, j
        return Answer(self.array.hi, self.array.lo)  # type: ignore[attr-defined]


@term
class Unplaced(Mask):
    """A boolean array whose axes are known only beside the query and key: `_checks` makes a `Dense` of it."""

    array: Any


def dense(array: Any) -> Mask:
    """A boolean array broadcastable to `[b, h, t, s]`, True = attend."""
    array = as_array(array, "a mask")
    if array.dtype != bool:
        raise TypeError(
            f"a mask array must be boolean, got {array.dtype}{list(array.shape)}: numbers to add to the score go in"
            " bias=, a padding mask [b, s] of ones and zeros is padding.astype(bool)[:, None, None, :] or"
            " jattn.masks.lengths(padding.sum(-1))"
        )
    return Unplaced(array)


@term
class Function(Mask):
    closure: Closure
    operands: tuple[Any, ...]
    held: tuple[Any, ...] = ()

    def __call__(self, i, j):
        found = jnp.asarray(self.closure.build(self.held)(i, j, *self.operands))
        if found.dtype != bool:
            raise TypeError(f"masks.function: {self.closure.name} returns {found.dtype}, must return bool")
        return found | jnp.zeros(jnp.broadcast_shapes(i.shape, j.shape), bool)

    def blocks(self, i, j):
        if self.operands or self.held or not isinstance(i.lo, np.ndarray):
            return super().blocks(i, j)
        rows, columns = (_positions(lo, hi) for lo, hi in ((i.lo[:, 0], i.hi[:, 0]), (j.lo[0], j.hi[0])))
        if rows.size * columns.size > _MOST_PAIRS:
            return super().blocks(i, j)

        def strip(rows):
            found = self(rows[:, None], columns.reshape(1, -1))
            over = lambda reduce: reduce(reduce(found, axis=0).reshape(columns.shape), axis=1)
            return over(jnp.any), over(jnp.all)

        def look() -> Answer:
            if rows.size * columns.size > _EAGER_PAIRS:
                some, every = jax.jit(lambda rows: jax.lax.map(strip, rows))(rows)
            else:
                some, every = zip(*map(strip, rows), strict=True)
            return Answer(np.array(some), np.array(every))

        # jax keeps what it is tracing, and for which mesh, to each thread: in a new one the function just runs
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            return thread.submit(look).result()


def _positions(lo: np.ndarray, hi: np.ndarray) -> np.ndarray:
    """Every position of every block, `[blocks, size]` int32; shorter blocks repeat their last."""
    size = int((hi - lo).max()) + 1
    return np.minimum(lo[:, None] + np.arange(size), hi[:, None]).astype(np.int32)


_MOST_PAIRS = 2**30  # a static function is looked at pair by pair while tracing: beyond about a second, not worth it
_EAGER_PAIRS = 2**22  # compiled, it looks ten times faster, but compiling takes longer than to look at so few


def function(fn: Callable, *operands: Operand) -> Mask:
    """fn(i, j, *operands) -> bool: any mask you can write; `i` is `[bt, 1]`, `j` is `[1, bs]`, int32.

    Without operands it is static: evaluated once per block while tracing, so that empty blocks are skipped.  It may
    close over arrays: NumPy arrays of up to 65,536 entries stay static, all others become operands, known at run time.

    >>> import numpy as np, jattn
    >>> even = jattn.masks.function(lambda i, j: j % 2 == 0)
    >>> document = np.array([0, 0, 0, 1, 1])
    >>> packed = jattn.masks.function(lambda i, j: document[i] == document[j])
    """
    return Function(*function_parts("masks.function", fn, operands, 2, tables=True))
