"""Masks: which keys a query may attend to.  They compose with `&`, `|` and `~`, and are never stored as `[t, s]`.

Positions: `i` of the query and `j` of the key, both counted from the start.  Each mask is a frozen dataclass pytree
with two methods: `__call__(i, j)`, True where the pair attends, and `blocks(i, j)`, the answer for whole blocks.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jattn._terms import AnyArray, FieldValue, Operand, Size, Term, as_array, indices, positions, term, wide
from jattn._terms.block_tables import Answer, Range
from jattn._terms.closures import Closure, function_parts

__all__ = [
    "Answer", "Mask", "Range", "around", "blocks", "causal", "dense", "dilated", "function", "lengths", "prefix",
    "segments", "window",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__


class Mask(Term):
    """What `attention(mask=...)` takes.  Make one with the functions of this module, or a subclass of your own.

    A subclass needs `__call__` alone.  With `blocks` too, blocks of pairs that it hides are never computed, and blocks
    that it leaves whole never look at it.  Its attributes may be numbers, and arrays, which are operands.

    >>> import dataclasses, jax, jattn
    >>> from jattn import masks
    >>> @dataclasses.dataclass(frozen=True)
    ... class Far(masks.Mask):
    ...     "j <= i - distance: only what lies some way back."
    ...     distance: int
    ...
    ...     def __call__(self, i, j):
    ...         return j <= i - self.distance
    ...
    ...     def blocks(self, i, j):  # the latest query with the earliest key, and the other way round
    ...         return masks.Answer(some=j.lo <= i.hi - self.distance, every=j.hi <= i.lo - self.distance)
    >>> x = jax.ShapeDtypeStruct((1, 1024, 2, 64), "float32")
    >>> plan = jattn.explain(x, x, x, mask=Far(256), blocks=(128, 128))
    >>> plan.blocks  # empty, partial and full, over both heads: 86 of 128 are skipped
    (86, 12, 30)
    """

    def __call__(self, i: jax.Array, j: jax.Array) -> jax.Array:
        """True where a pair attends, broadcastable to `[bt, bs]`, of positions i `[bt, 1]` and j `[1, bs]`, int32."""
        raise NotImplementedError

    def blocks(self, i: Range, j: Range) -> Answer:
        """The answer for every block, of the ranges of its positions; unless told better, look at every pair.

        The ranges are `[query blocks, 1]` and `[1, key blocks]`.  They are NumPy's, and an answer in NumPy is known
        while tracing; a mask that holds arrays is asked with their ranges in the place of them, and answers in JAX.
        """
        del i, j
        return Answer(np.array(True), np.array(False))

    __array_ufunc__ = None  # `array & mask` is this class's to answer, not NumPy's

    def __and__(self, other: Mask) -> Mask:
        return _joined(And, self, other)

    def __or__(self, other: Mask) -> Mask:
        return _joined(Or, self, other)

    def __rand__(self, other: object) -> Mask:
        return _joined(And, self, other)

    def __ror__(self, other: object) -> Mask:
        return _joined(Or, self, other)

    def __invert__(self) -> Mask:
        return Not(self)

    def __bool__(self) -> bool:
        raise TypeError("a mask has no truth value: combine masks with & | ~, not with `and`, `or`, `not`")


def _joined(kind: type[And] | type[Or], left: Mask, right: object) -> Mask:
    """`left & right` or `left | right`."""
    if isinstance(right, (np.ndarray, jax.Array)):
        raise TypeError(
            f"& and | join masks, got an array {list(right.shape)}: make a mask of it with jattn.masks.dense"
        )
    return kind(left, right) if isinstance(right, Mask) else NotImplemented


@term
class And(Mask):
    """Where both attend."""

    left: Mask
    right: Mask

    def __call__(self, i: jax.Array, j: jax.Array) -> jax.Array:
        return self.left(i, j) & self.right(i, j)

    def blocks(self, i: Range, j: Range) -> Answer:
        return self.left.blocks(i, j) & self.right.blocks(i, j)


@term
class Or(Mask):
    """Where one of two attends."""

    left: Mask
    right: Mask

    def __call__(self, i: jax.Array, j: jax.Array) -> jax.Array:
        return self.left(i, j) | self.right(i, j)

    def blocks(self, i: Range, j: Range) -> Answer:
        return self.left.blocks(i, j) | self.right.blocks(i, j)


@term
class Not(Mask):
    """Where another does not attend."""

    mask: Mask

    def __call__(self, i: jax.Array, j: jax.Array) -> jax.Array:
        return ~self.mask(i, j)

    def blocks(self, i: Range, j: Range) -> Answer:
        return ~self.mask.blocks(i, j)


def _ends(value: int | Range) -> Range | tuple[int, int]:
    """The least and the greatest of a static number, or of an operand in a block."""
    return value if isinstance(value, Range) else (value, value)


@term
class Window(Mask):
    """-left <= j - i <= right; None leaves a side open."""

    left: FieldValue
    right: FieldValue

    def __call__(self, i: jax.Array, j: jax.Array) -> jax.Array:
        inside: jax.Array | bool = True
        if self.left is not None:
            inside = j >= positions.shifted(i, -self.left)
        if self.right is not None:
            inside = (j <= positions.shifted(i, self.right)) & inside
        return inside | jnp.zeros(jnp.broadcast_shapes(i.shape, j.shape), bool)

    def blocks(self, i: Range, j: Range) -> Answer:
        answer = Answer(np.array(True), np.array(True))
        if self.left is not None:
            least, greatest = _ends(self.left)
            first, last = positions.shifted(i.lo, -greatest), positions.shifted(i.hi, -least)
            answer &= Answer(j.hi >= first, j.lo >= last)
        if self.right is not None:
            least, greatest = _ends(self.right)
            first, last = positions.shifted(i.lo, least), positions.shifted(i.hi, greatest)
            answer &= Answer(j.lo <= last, j.hi <= first)
        return answer


def causal(offset: ArrayLike = 0) -> Mask:
    """j <= i + offset: a query sees the keys up to its own position (top-left aligned, as in jax.nn).

    For queries that are the last t of s positions, offset = s - t.

    Args:
      offset: an int, or an integer scalar array where it is known only at run time (a decoding step).  An int is part
        of the compiled program, which skips blocks by it, so another one compiles anew: where it changes with every
        call, give `jnp.int32(offset)`.

    Raises:
      TypeError, ValueError: `offset` is not an integer, or an array with axes.

    >>> import numpy as np, jattn
    >>> print(jattn.masks.causal()(np.arange(3)[:, None], np.arange(3)[None]).astype(int))
    [[1 0 0]
     [1 1 0]
     [1 1 1]]

    Source: Vaswani et al. 2017, section 3.2.3.
    """
    return Window(None, _side(offset, "offset"))


def window(left: ArrayLike | None, right: ArrayLike | None = 0) -> Mask:
    """i - left <= j <= i + right: sliding-window (local) attention.

    Args:
      left: how many keys before its own position a query sees: an int, or an integer scalar array known at run time;
        None, and what reaches past the greatest position 2^31 - 1, leaves the side open.
      right: how many after it, likewise.

    Raises:
      ValueError: left + right < 0, which leaves no key; or an array has axes.
      TypeError: a side is not an integer.

    >>> import numpy as np, jattn
    >>> print(jattn.masks.window(1)(np.arange(3)[:, None], np.arange(3)[None]).astype(int))
    [[1 0 0]
     [1 1 0]
     [0 1 1]]

    Source: Beltagy et al. 2020, section 3.1.
    """
    if isinstance(left, (int, np.integer)) and isinstance(right, (int, np.integer)) and int(left) + int(right) < 0:
        raise ValueError(f"a window must leave a key: left + right must be >= 0, got left {left}, right {right}")
    return Window(_side(left, "left"), _side(right, "right"))


def _side(value: ArrayLike | None, name: str) -> int | Operand | None:
    """A side of a window: an int, an operand, or None where it is open."""
    side = None if value is None else positions.integer(value, name)
    return None if isinstance(side, int) and side >= positions.FAR else side


@term
class Around(Mask):
    """A window around the query's centre in the place of its own position."""

    center: FieldValue
    window: Mask

    def __call__(self, i: jax.Array, j: jax.Array) -> jax.Array:
        del i
        return self.window(self.center, j)

    def blocks(self, i: Range, j: Range) -> Answer:
        del i
        return self.window.blocks(self.center, j)


def around(center: ArrayLike, left: ArrayLike | None, right: ArrayLike | None) -> Mask:
    """center[i] - left <= j <= center[i] + right: a window around centres known at run time.

    Blocks that no centre of a block of queries comes near are skipped.  A mask passes no gradient: that of the centre
    comes through a gate, `gates.gaussian(center, sigma)`.

    Args:
      center: `[t]`, `[b, t]` or `[b, h, t]`, integers or floating-point numbers, in positions of the keys.
      left: how many positions before the centre a query sees, as in `window`.
      right: how many after it.

    Raises:
      ValueError: `center` has other axes or is boolean; the sides are those of an empty window.
      TypeError: a side is not an integer.

    >>> import numpy as np, jattn
    >>> mask = jattn.masks.around(np.array([0.5, 3.0]), 1, 1)  # query 0 sees keys 0 and 1; query 1 sees 2, 3 and 4
    >>> q, k = np.ones((1, 2, 1, 4), "float32"), np.ones((1, 5, 1, 4), "float32")
    >>> (jattn.weights(q, k, k, mask=mask)[0, 0] > 0).astype(int).tolist()
    [[1, 1, 0, 0, 0], [0, 0, 1, 1, 1]]

    Source: Luong et al. 2015, section 3.2 ("local-p").
    """
    centers = center if isinstance(center, (np.ndarray, jax.Array)) else jnp.asarray(center)
    if centers.ndim not in (1, 2, 3) or centers.dtype == bool:
        raise ValueError(f"center must be numbers [t], [b, t] or [b, h, t], got {centers.dtype}{list(centers.shape)}")
    # wide, so that blocks are judged by the numbers that pairs are judged by
    held = Operand(jax.lax.stop_gradient(wide(centers)), ("t", "bt", "bht")[centers.ndim - 1])
    return Around(held, window(left, right))


@term
class Segments(Mask):
    """A query and a key of the same id."""

    query: FieldValue
    key: FieldValue

    def __call__(self, i: jax.Array, j: jax.Array) -> jax.Array:
        del i, j
        return self.query == self.key

    def blocks(self, i: Range, j: Range) -> Answer:
        del i, j
        q, k = self.query, self.key
        return Answer((q.lo <= k.hi) & (k.lo <= q.hi), (q.lo == k.hi) & (k.lo == q.hi))


def segments(q_ids: ArrayLike, kv_ids: ArrayLike | None = None) -> Mask:
    """q_ids[b, i] == kv_ids[b, j]: packed sequences attend only to themselves.

    Ids that come in runs (packed documents) let whole blocks be skipped, at run time.

    Args:
      q_ids: integers `[b, t]`, or `[t]` for all batch elements.
      kv_ids: integers `[b, s]` or `[s]`; None takes `q_ids`.

    Raises:
      ValueError: ids are no integers, have other axes, or need 64 bits while x64 is off.

    >>> import numpy as np, jattn
    >>> q = np.ones((1, 4, 1, 4), "float32")
    >>> jattn.weights(q, q, q, mask=jattn.masks.segments([[7, 7, 8, 8]]))[0, 0].tolist()[0]
    [0.5, 0.5, 0.0, 0.0]

    Source: Krell et al. 2021, "Efficient Sequence Packing without Cross-contamination".
    """
    kv_ids = q_ids if kv_ids is None else kv_ids
    return Segments(_ids(q_ids, "q_ids", "t"), _ids(kv_ids, "kv_ids", "s"))


def _ids(ids: ArrayLike, name: str, axis: str) -> Operand:
    array = as_array(ids, name)
    if array.ndim not in (1, 2) or not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(
            f"{name} must be integers of shape [b, {axis}] or [{axis}], got {array.dtype}{list(array.shape)}"
        )
    return Operand(array, axis if array.ndim == 1 else "b" + axis)


@term
class Before(Mask):
    """Key (or query) positions below a bound."""

    limit: FieldValue
    axis: str

    def __call__(self, i: jax.Array, j: jax.Array) -> jax.Array:
        zero = jnp.zeros(jnp.broadcast_shapes(i.shape, j.shape), jnp.int32)
        return (i if self.axis == "t" else j) + zero < self.limit

    def blocks(self, i: Range, j: Range) -> Answer:
        position, (least, greatest) = (i if self.axis == "t" else j), _ends(self.limit)
        return Answer(position.lo < greatest, position.hi < least)


def prefix(length: ArrayLike) -> Mask:
    """j < length[b]: every query sees a prefix of the keys.  `prefix(n) | causal()` is the prefix-LM mask.

    Args:
      length: an int, an integer scalar array, or integers `[b]`.

    Raises:
      TypeError: `length` is not an integer, or has more axes.

    >>> import numpy as np, jattn
    >>> mask = jattn.masks.prefix(2) | jattn.masks.causal()
    >>> print(mask(np.arange(3)[:, None], np.arange(3)[None]).astype(int))
    [[1 1 0]
     [1 1 0]
     [1 1 1]]

    Source: Raffel et al. 2020, section 3.2.1.
    """
    return Before(positions.lengths(length, "length"), "s")


def lengths(kv: ArrayLike, q: ArrayLike | None = None) -> Mask:
    """j < kv[b] and, if `q` is given, i < q[b]: padded batches.

    Args:
      kv: how many keys of each batch element are real, integers `[b]`; an int counts for all.
      q: how many queries are, likewise; rows past them see nothing and give 0.  None for all.

    Raises:
      TypeError: lengths are not integers, or have more axes.

    >>> import numpy as np, jattn
    >>> q = np.ones((2, 4, 1, 4), "float32")
    >>> jattn.weights(q, q, q, mask=jattn.masks.lengths([2, 4]))[:, 0, 0].tolist()
    [[0.5, 0.5, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]]
    """
    mask = prefix(kv)
    return mask if q is None else mask & Before(positions.lengths(q, "q"), "t")


@term
class Dilated(Mask):
    """Every stride-th key, counted from the query."""

    stride: int

    def __call__(self, i: jax.Array, j: jax.Array) -> jax.Array:
        return (i - j) % self.stride == 0

    def blocks(self, i: Range, j: Range) -> Answer:
        lo, hi = i.lo - j.hi, i.hi - j.lo
        return Answer(hi // self.stride * self.stride >= lo, (lo == hi) & (lo % self.stride == 0) | (self.stride == 1))


def dilated(stride: int) -> Mask:
    """(i - j) % stride == 0: every stride-th key, counted from the query.

    Args:
      stride: an int >= 1.

    Raises:
      ValueError: it is not.

    >>> import numpy as np, jattn
    >>> print(jattn.masks.dilated(2)(np.arange(3)[:, None], np.arange(3)[None]).astype(int))
    [[1 0 1]
     [0 1 0]
     [1 0 1]]

    Source: Child et al. 2019, section 4 (the strided pattern); Beltagy et al. 2020, section 3.1.
    """
    if not isinstance(stride, (int, np.integer)) or stride < 1:
        raise ValueError(f"stride must be an int >= 1, got {stride!r}")
    return Dilated(min(int(stride), positions.FAR))


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
    """Blocks of a static layout."""

    layout: _Layout
    block: int
    head: FieldValue  # the operand that says which head this tile is of; None where the layout is the same for all

    def bound(self, b: Size, h: Size) -> Blocks:
        del b
        return self if self.layout.array.ndim == 2 else dataclasses.replace(self, head=indices(h, "h"))

    def __call__(self, i: jax.Array, j: jax.Array) -> jax.Array:
        layout = jnp.asarray(self.layout.array)
        layout = layout if self.head is None else layout[self.head]
        return layout[i // self.block, j // self.block]

    def blocks(self, i: Range, j: Range) -> Answer:
        if not isinstance(i.lo, np.ndarray):  # positions known only at run time
            return super().blocks(i, j)
        # sums over rectangles of layout cells, from a two-dimensional prefix sum
        layout = self.layout.array
        corner = np.zeros((*layout.shape[:-2], layout.shape[-2] + 1, layout.shape[-1] + 1), np.int64)
        corner[..., 1:, 1:] = layout.cumsum(-2).cumsum(-1)
        (r0, r1), (c0, c1) = ((np.asarray(x.lo) // self.block, np.asarray(x.hi) // self.block + 1) for x in (i, j))
        inside = corner[..., r1, c1] - corner[..., r0, c1] - corner[..., r1, c0] + corner[..., r0, c0]
        return Answer(inside > 0, inside == (r1 - r0) * (c1 - c0))


def blocks(layout: ArrayLike, block: int) -> Mask:
    """layout[i // block, j // block]: block-sparse attention.  Blocks that the layout leaves out are never computed.

    Args:
      layout: booleans `[n, m]`, or `[h, n, m]` for a layout of each head, known while tracing (NumPy, lists), with
        n * block >= t and m * block >= s.
      block: how many positions a block has, an int >= 1.

    Raises:
      ValueError: the layout is not boolean, or has other axes; `block` is not such an int.  When `attention` is called:
        the layout does not cover t, s or h.

    >>> import numpy as np, jattn
    >>> mask = jattn.masks.blocks([[True, False], [True, True]], 2)
    >>> print(mask(np.arange(4)[:, None], np.arange(4)[None]).astype(int))
    [[1 1 0 0]
     [1 1 0 0]
     [1 1 1 1]
     [1 1 1 1]]

    Source: Child et al. 2019 (their block-sparse kernels); Zaheer et al. 2020 (random and global blocks).
    """
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
    """A boolean array with the axes along which it varies."""

    array: FieldValue

    def __call__(self, i: jax.Array, j: jax.Array) -> jax.Array:
        return self.array | jnp.zeros(jnp.broadcast_shapes(i.shape, j.shape), bool)

    def blocks(self, i: Range, j: Range) -> Answer:
        del i, j
        return Answer(self.array.hi, self.array.lo)


@term
class Unplaced(Mask):
    """A boolean array whose axes are known only beside the query and key: `_call.checks` makes a `Dense` of it."""

    array: FieldValue


def dense(array: ArrayLike) -> Mask:
    """array[b, h, i, j]: any booleans, True = attend.  `attention(mask=array)` is short for it.

    Its blocks are judged by its entries, at run time; memory is that of the array.

    Args:
      array: booleans broadcastable to `[b, h, t, s]`.

    Raises:
      TypeError: the array is not boolean.  ValueError, when `attention` is called: it is not broadcastable.

    >>> import numpy as np, jattn
    >>> q = np.ones((1, 2, 1, 4), "float32")
    >>> jattn.weights(q, q, q, mask=jattn.masks.dense([[True, False], [True, True]]))[0, 0].tolist()
    [[1.0, 0.0], [0.5, 0.5]]
    """
    booleans = as_array(array, "a mask")
    if booleans.dtype != bool:
        raise TypeError(
            f"a mask array must be boolean, got {booleans.dtype}{list(booleans.shape)}: numbers to add to the score go"
            " in bias=, a padding mask [b, s] of ones and zeros is padding.astype(bool)[:, None, None, :] or"
            " jattn.masks.lengths(padding.sum(-1))"
        )
    return Unplaced(booleans)


@term
class Function(Mask):
    """A user's function."""

    closure: Closure
    operands: tuple[FieldValue, ...]
    held: tuple[FieldValue, ...] = ()

    def __call__(self, i: jax.Array, j: jax.Array) -> jax.Array:
        found = jnp.asarray(self.closure.build(self.held)(i, j, *self.operands))
        if found.dtype != bool:
            raise TypeError(f"masks.function: {self.closure.name} returns {found.dtype}, must return bool")
        return found | jnp.zeros(jnp.broadcast_shapes(i.shape, j.shape), bool)

    def blocks(self, i: Range, j: Range) -> Answer:
        if self.operands or self.held or not isinstance(i.lo, np.ndarray):
            return super().blocks(i, j)
        rows, columns = (_every(lo, hi) for lo, hi in ((i.lo[:, 0], i.hi[:, 0]), (j.lo[0], j.hi[0])))
        if rows.size * columns.size > _MOST_PAIRS:
            return super().blocks(i, j)

        def strip(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
            found = self(rows[:, None], jnp.asarray(columns.reshape(1, -1)))
            over = lambda reduce: reduce(reduce(found, axis=0).reshape(columns.shape), axis=1)
            return over(jnp.any), over(jnp.all)

        def look() -> Answer:
            if rows.size * columns.size > _EAGER_PAIRS:
                some, every = jax.jit(lambda rows: jax.lax.map(strip, rows))(rows)
            else:
                some, every = zip(*map(strip, rows), strict=True)
            return Answer(np.array(some), np.array(every))

        # In a thread of its own the function just runs: what JAX is tracing, and for which mesh, it keeps to each
        # thread.  `jax.ensure_compile_time_eval` leaves the trace but not the mesh of `jax.set_mesh`, so that
        # it would run on devices that are only there to be compiled for.
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            return thread.submit(look).result()


def _every(lo: AnyArray, hi: AnyArray) -> np.ndarray:
    """Every position of every block, `[blocks, size]` int32; shorter blocks repeat their last."""
    size = int((hi - lo).max()) + 1
    return np.minimum(lo[:, None] + np.arange(size), hi[:, None]).astype(np.int32)


_MOST_PAIRS = 2**30  # a static function is looked at pair by pair while tracing: beyond about a second, not worth it
_EAGER_PAIRS = 2**22  # compiled, it looks ten times faster, but compiling takes longer than to look at so few


def function(fn: Callable, *operands: ArrayLike | Operand) -> Mask:
    """fn(i, j, *operands): any mask that you can write.

    Without operands it is static: evaluated once per block while tracing, so that empty blocks are skipped.  It may
    close over arrays: NumPy arrays of up to 65,536 entries stay static, all others become operands, known at run time.
    Pairs are looked at one by one, up to 2^30 of them; a mask class with `blocks` of its own answers at once (see
    `Mask`).

    Args:
      fn: takes int32 positions i `[bt, 1]` and j `[1, bs]` and an array for each operand; returns booleans
        broadcastable to `[bt, bs]`.  It is elementwise: no pair may depend on which others are in its tile.
      *operands: made with `jattn.operand`; each reaches `fn` broadcastable to `[bt, bs]`.

    Raises:
      TypeError: `fn` is not callable with that many arguments.  When `attention` is called, TypeError or ValueError:
        it returns no booleans, is not elementwise, or draws random numbers.

    >>> import numpy as np, jattn
    >>> even = jattn.masks.function(lambda i, j: j % 2 == 0)
    >>> def packed(document):
    ...     return jattn.masks.function(lambda i, j: document[i] == document[j])
    >>> q = np.ones((1, 4, 1, 4), "float32")
    >>> jattn.weights(q, q, q, mask=even & packed(np.array([0, 0, 0, 1])))[0, 0].tolist()[0]
    [0.5, 0.0, 0.5, 0.0]

    Source: Dong et al. 2024, "Flex Attention" (mask_mod).
    """
    return Function(*function_parts("masks.function", fn, operands, 2, tables=True))
