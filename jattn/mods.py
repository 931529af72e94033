"""Mods: functions score -> score, applied in order after scaling and before the mask and the normaliser.

Each is a frozen dataclass pytree called with one tile: `score` `[bt, bs]`, positions `i` `[bt, 1]` and `j` `[1, bs]`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jattn._terms import FieldValue, Operand, Term, number, operand, term
from jattn._terms.closures import Closure, OfUser, function_parts
from jattn._terms.rows import finite_rows

__all__ = [
    "Mod", "T5Bucket", "alibi", "alibi_slopes", "bias", "function", "relative", "relative_content", "softcap",
    "t5_bucket",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__


class Mod(Term):
    """What `attention(mods=...)` takes.  Make one with the functions of this module, or a subclass of your own, whose
    attributes may be numbers, and arrays, which get gradients.

    >>> import dataclasses, jax, jax.numpy as jnp, jattn
    >>> @dataclasses.dataclass(frozen=True)
    ... class Tilt(jattn.mods.Mod):
    ...     slope: jax.Array
    ...
    ...     def __call__(self, score, i, j):
    ...         return score - self.slope * (i - j)
    >>> q = jnp.ones((1, 3, 2, 4))
    >>> jattn.attention(q, q, q, mods=Tilt(jnp.float32(0.5))).shape
    (1, 3, 2, 4)
    """

    hides: bool = False
    """Whether it may give -inf: such a score is hidden from the mods that follow."""
    finite: bool = False
    """Whether it has a finite derivative at every pair, of finite scores and operands; if not, what it has at hidden
    pairs is kept from the gradients, which costs a selection."""

    def __call__(self, score: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
        """The new score `[bt, bs]`, of one head: score in float32 or wider, positions i `[bt, 1]`, j `[1, bs]`."""
        raise NotImplementedError


@term
class SoftCap(Mod):
    """cap * tanh(score / cap)."""

    finite = True

    cap: FieldValue

    def __call__(self, score: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
        del i, j
        return self.cap * jnp.tanh(score * (1 / self.cap))  # one division, and not one for each pair


_MOST = 1e30
"""The greatest cap: of scores divided by greater ones nothing is left in float32."""


def softcap(cap: ArrayLike) -> Mod:
    """cap * tanh(score / cap): keeps scores within (-cap, cap).

    A score that is -inf before it, by a bias say, is hidden and stays so.  On GPU fused kernels take the hardware's
    tanh, whose relative error is 2^-11.

    Args:
      cap: a number > 0, which is part of the compiled program, so that another one compiles anew; or a scalar array,
        which is not, and gets a gradient.

    Raises:
      ValueError: `cap` is a number <= 0 or above 1e30, or an array with axes.
      TypeError: it is neither a number nor an array.

    >>> import jax.numpy as jnp, jattn
    >>> float(jattn.mods.softcap(30.0)(jnp.float32(3000.0), jnp.int32(0), jnp.int32(0)))
    30.0

    Source: Gemma Team 2024, "Gemma 2", section 2 (logit soft-capping).
    """
    bound = number(cap, "cap")
    if not isinstance(bound, Operand) and not 0 < bound <= _MOST:
        raise ValueError(f"cap must be > 0 and at most {_MOST:g}, got {bound}: without a cap leave the mod out")
    return SoftCap(bound)


@term
class Alibi(Mod):
    """score - slope * abs(i - j)."""

    finite = True

    slopes: FieldValue

    def __call__(self, score: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
        return score - self.slopes * jnp.abs(i - j)


def alibi(slopes: ArrayLike) -> Mod:
    """score - slopes[h] * abs(i - j): attention with linear biases.

    Args:
      slopes: numbers `[h]`, which get gradients; `alibi_slopes(h)` gives the paper's.

    Raises:
      ValueError: `slopes` has no axis.  When `attention` is called: it is not as long as the query has heads.
      TypeError: it is not an array.

    >>> import jax.numpy as jnp, jattn
    >>> q = jnp.ones((1, 3, 2, 4))
    >>> jattn.attention(q, q, q, mods=jattn.mods.alibi(jattn.mods.alibi_slopes(2))).shape
    (1, 3, 2, 4)

    Source: Press et al. 2022, section 3.
    """
    return Alibi(operand(slopes, "h"))


def alibi_slopes(heads: int) -> jax.Array:
    """ALiBi's slopes `[heads]`: 2^(-8/n), 2^(-16/n), .., with n the power of two at or below `heads`, and for the heads
    beyond n every second one of the slopes of 2n.

    Args:
      heads: how many, an int >= 1.

    Raises:
      ValueError: `heads` is less.

    >>> import jattn
    >>> jattn.mods.alibi_slopes(4).tolist()
    [0.25, 0.0625, 0.015625, 0.00390625]

    Source: Press et al. 2022, section 3, and its code for other numbers of heads.
    """
    if heads < 1:
        raise ValueError(f"heads must be >= 1, got {heads}")
    n = 2 ** math.floor(math.log2(heads))
    first = [2.0 ** (-8.0 * (x + 1) / n) for x in range(n)]
    between = [2.0 ** (-4.0 * (2 * x + 1) / n) for x in range(heads - n)]
    return jnp.asarray(first + between)


@term
class Bias(Mod):
    """score + array."""

    hides = True
    finite = True

    array: FieldValue

    def __call__(self, score: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
        del i, j
        return score + self.array


def bias(array: ArrayLike, axes: str) -> Mod:
    """score + array: any numbers, without `[t, s]` memory that the array does not have itself.

    `attention(bias=array)` is short for it where the array is broadcastable to `[b, h, t, s]`.

    Args:
      array: numbers with one axis for each letter of `axes`, which get gradients.  -inf hides a pair.
      axes: a subset of `"bhts"` in that order, `""` for a scalar.

    Raises:
      ValueError: `axes` is not such a subset, or the array has not so many axes.
      TypeError: `array` is not an array.

    >>> import jax.numpy as jnp, jattn
    >>> q = jnp.ones((2, 3, 2, 4))
    >>> per_key = jattn.mods.bias(jnp.array([[0.0, 0.0, -jnp.inf]] * 2), "bs")
    >>> jattn.weights(q, q, q, mods=per_key)[0, 0, 0].tolist()
    [0.5, 0.5, 0.0]
    """
    named = operand(array, axes)
    if jnp.issubdtype(named.array.dtype, jax.dtypes.extended):
        raise TypeError(f"bias must be numbers, got {named.array.dtype}{list(named.array.shape)}")
    if named.array.ndim != len(axes):
        raise ValueError(f"bias with axes {axes!r} needs {len(axes)} axes, got shape {named.array.shape}")
    return Bias(named)


@term
class Bucketed(Mod):
    """A mod that looks j - i up in a table."""

    finite = True

    name = "mods.relative"

    table: FieldValue
    closure: Closure  # of the bucket
    held: tuple[Operand, ...] = ()

    def bucket(self, relative: jax.Array) -> jax.Array:
        """Columns of the table, of positions relative to the query."""
        try:
            return self.closure.build(self.held)(relative)
        except jax.errors.UnexpectedTracerError:
            raise TypeError(
                f"{self.name}: bucket {self.closure.name} uses a traced array that is out of reach when it runs:"
                " let it close over the array itself, or make the bias with jattn.mods.function and jattn.operand"
            ) from None

    def entries(self, relative: jax.Array) -> jax.Array:
        """Those of the table; of a bucket before the first or after the last it is the nearer of the two."""
        return self.table[jnp.clip(self.bucket(relative), 0, len(self.table) - 1)]


@term
class Relative(Bucketed):
    """score + table[bucket(j - i)]."""

    hides = True

    def __call__(self, score: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
        # the bias is constant along diagonals: look up each diagonal of the tile once, then shear the strip
        rows, columns = i.shape[0], j.shape[1]
        first = j[0, 0] - i[0, 0] - (rows - 1)
        strip = self.entries(first + jnp.arange(rows + columns - 1, dtype=jnp.int32))
        return score + _shear(strip, rows, columns)


def _shear(strip: jax.Array, rows: int, columns: int) -> jax.Array:
    """[rows + columns - 1] -> [rows, columns], with [r, c] = strip[c - r + rows - 1]: no gather, no scatter in
    reverse."""
    n = rows + columns - 1
    periodic = jnp.broadcast_to(strip, (rows + 1, n)).reshape(-1)
    # row r of a view that is one longer than the period starts r places later in it
    return jnp.flip(periodic[: rows * (n + 1)].reshape(rows, n + 1)[:, :columns], 0)


@term
class RelativeContent(Bucketed):
    """score + content . table[bucket(j - i)], the content a query's or a key's."""

    name = "mods.relative_content"

    content: FieldValue = None  # [bt, 1, m] or [1, bs, m]
    of_keys: bool = False

    def __call__(self, score: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
        # each row with the diagonals of the tile, and then sheared; of keys the same with the tile turned
        rows, columns = i.shape[0], j.shape[1]
        lead, n = j[0, 0] - i[0, 0], jnp.arange(rows + columns, dtype=jnp.int32)
        at = lead + columns - 1 - n if self.of_keys else lead - (rows - 1) + n
        content, flaw = finite_rows(self.content[0] if self.of_keys else self.content[:, 0])
        # float32 is not rounded, as in the product of queries and keys
        product = jnp.matmul(content, self.entries(at).T, precision=jax.lax.Precision.HIGHEST) + flaw
        return score + (_shear_rows(product, rows).T if self.of_keys else _shear_rows(product, columns))


def _shear_rows(rows: jax.Array, columns: int) -> jax.Array:
    """[r, r + columns] -> [r, columns], with [x, c] = rows[x, c - x + r - 1]."""
    r, n = rows.shape
    # row x of a view that is one shorter starts x places earlier
    return rows.reshape(-1)[r - 1 : r - 1 + r * (n - 1)].reshape(r, n - 1)[:, :columns]


@dataclasses.dataclass(frozen=True)
class T5Bucket:
    """The bucket of a relative position j - i in T5; made by `t5_bucket`."""

    bidirectional: bool
    buckets: int
    max_distance: int

    def __call__(self, relative: jax.Array) -> jax.Array:
        """Buckets, int32, of any array of j - i."""
        side = self.buckets // 2 if self.bidirectional else self.buckets
        base = jnp.where(relative > 0, side, 0) if self.bidirectional else 0
        distance = jnp.abs(relative) if self.bidirectional else jnp.maximum(-relative, 0)
        far = sum((distance >= start).astype(jnp.int32) for start in self._far(side // 2, side - side // 2))
        return base + jnp.minimum(distance, side // 2) + far

    def _far(self, exact: int, count: int) -> list[int]:
        """Where the logarithmic buckets start, but for the first: the least d with d/exact >= (max/exact)^(n/count).

        In integers: a logarithm in float32 puts some of these d in the bucket before.
        """
        starts = []
        for n in range(1, count):
            reached = lambda d, n=n: d**count * exact**n >= self.max_distance**n * exact**count
            near = int(exact * (self.max_distance / exact) ** (n / count))
            starts.append(next(d for d in itertools.count(near) if reached(d)))
        return starts


def t5_bucket(bidirectional: bool, buckets: int = 32, max_distance: int = 128) -> T5Bucket:
    """T5's buckets of j - i: exact up to half of them, logarithmic up to `max_distance`, the last for all beyond.

    Args:
      bidirectional: whether the keys after the query have buckets of their own (encoders); decoders take False.
      buckets: how many in all.
      max_distance: from which distance on all are in the last.

    Returns:
      A function from int32 arrays of j - i to buckets, for `relative`.

    Raises:
      ValueError: there are too few buckets, or `max_distance` lies within the exact ones.

    >>> import jax.numpy as jnp, jattn
    >>> bucket = jattn.mods.t5_bucket(bidirectional=False)
    >>> bucket(jnp.array([1, 0, -1, -15, -16, -1000])).tolist()
    [0, 0, 1, 15, 16, 31]

    Source: Raffel et al. 2020, section 2.1, and its code.
    """
    side = buckets // 2 if bidirectional else buckets
    if buckets < 2 + 2 * bidirectional or max_distance <= side // 2:
        raise ValueError(
            f"buckets must be >= {2 + 2 * bidirectional} and max_distance > {side // 2}, got {buckets}, {max_distance}"
        )
    return T5Bucket(bool(bidirectional), buckets, max_distance)


def relative(table: ArrayLike, bucket: Callable[[jax.Array], jax.Array] | None = None) -> Mod:
    """score + table[h, bucket(j - i)]: a learned bias for each relative position.

    Memory is that of the table, never `[t, s]`.

    Args:
      table: numbers `[h, buckets]`, which get gradients.
      bucket: maps int32 arrays of j - i to columns of the table, elementwise, in `jax.numpy`; None is
        `t5_bucket(bidirectional=True)` with as many buckets as the table has columns.  Below 0 it is the first, past
        the last the last.

    Raises:
      ValueError: `table` has other axes.
      TypeError: `bucket` is not a function; when `attention` is called: it does not map integers to as many.

    >>> import jax.numpy as jnp, jattn
    >>> table = jnp.zeros((2, 32))
    >>> q = jnp.ones((1, 3, 2, 4))
    >>> jattn.attention(q, q, q, mods=jattn.mods.relative(table, jattn.mods.t5_bucket(False))).shape
    (1, 3, 2, 4)

    Source: Raffel et al. 2020, section 2.1; Shaw et al. 2018.
    """
    named = operand(table, "h")
    if named.array.ndim != 2:
        raise ValueError(f"table must be [h, buckets], got shape {named.array.shape}")
    bucket = t5_bucket(True, named.array.shape[1]) if bucket is None else bucket
    return Relative(named, *_bucket(bucket, Relative.name))


def _bucket(bucket: Callable[[jax.Array], jax.Array], name: str) -> tuple[Closure, tuple[Operand, ...]]:
    """A bucket without the arrays that it closes over, and these."""
    if not callable(bucket):
        raise TypeError(f"bucket must be a function of j - i, like jattn.mods.t5_bucket(True), got {bucket!r}")
    _, closure, _, held = function_parts(f"{name}: bucket", bucket, (), "j - i")
    return closure, held


def relative_content(
    content: ArrayLike,
    table: ArrayLike,
    bucket: Callable[[jax.Array], jax.Array] | None = None,
    of: Literal["query", "key"] = "query",
) -> Mod:
    """score + content[b, i, h] . table[h, bucket(j - i)]: what a query has to say of a relative position; with
    `of="key"` score + content[b, j, h] . table[h, bucket(j - i)], what a key has.

    Memory is that of the content and of the table: a tile is multiplied with the relative positions that it has, and no
    `[t, buckets]` or `[t, s]` array is made.  DeBERTa has one of each, Shaw's and Transformer-XL's the first, with the
    query or the query and a learned vector as its content.

    Args:
      content: `[b, t, h, m]`, or `[b, s, h, m]` of keys, as queries are laid out; the batch axis may be absent.  It is
        not scaled: give it the factor that the score has.
      table: `[buckets, m]` or `[h, buckets, m]`.  Both get gradients.
      bucket: maps int32 arrays of j - i to entries of the table; None takes the middle one for j = i, its neighbours
        for the positions beside, and the first and the last for all beyond.
      of: "query" or "key".

    Raises:
      ValueError: `content` or `table` has other axes, or other widths m; `of` is neither.
      TypeError: `bucket` is not a function; when `attention` is called: it does not map integers to as many.

    >>> import jax, jax.numpy as jnp, jattn
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 6, 2, 4))
    >>> table = jax.random.normal(jax.random.key(1), (2 * 3 + 1, 4))  # 3 positions before and after
    >>> shaw = jattn.mods.relative_content(q / 2, table)
    >>> jattn.attention(q, k, v, mods=shaw).shape
    (1, 6, 2, 4)

    Positions in two dimensions, as SAM's: of 2 by 3 patches each query has something to say of each row and column.

    >>> y = jattn.operand(jax.random.normal(jax.random.key(2), (1, 2, 6, 2)), "bht")
    >>> x = jattn.operand(jax.random.normal(jax.random.key(3), (1, 2, 6, 3)), "bht")
    >>> look_up = lambda content, n: jnp.take(content[:, 0], n[0], axis=1, mode="clip")
    >>> def decomposed(score, i, j, y, x):
    ...     return score + look_up(y, j // 3) + look_up(x, j % 3)
    >>> jattn.attention(q, k, v, mods=jattn.mods.function(decomposed, y, x)).shape
    (1, 6, 2, 4)

    Source: Shaw et al. 2018, equation 4; Dai et al. 2019 (Transformer-XL), section 3.3; He et al. 2021 (DeBERTa),
    equation 4; of two dimensions: Li et al. 2022 (MViTv2), section 4.1.
    """
    if of not in ("query", "key"):
        raise ValueError(f'of must be "query" or "key", got {of!r}')
    contents, entries = (x if isinstance(x, (jax.Array, np.ndarray)) else jnp.asarray(x) for x in (content, table))
    if contents.ndim not in (3, 4):
        raise ValueError(f"content must be [b, t, h, m], or without b, got shape {contents.shape}")
    if entries.ndim not in (2, 3) or entries.shape[-1] != contents.shape[-1]:
        raise ValueError(
            f"table must be [buckets, m] or [h, buckets, m], of the content's width m = {contents.shape[-1]}, got shape"
            f" {entries.shape}"
        )
    last = entries.shape[-2] - 1
    bucket = (lambda relative: jnp.clip(relative + last // 2, 0, last)) if bucket is None else bucket
    axes = ("b" if contents.ndim == 4 else "") + ("hs" if of == "key" else "ht")
    named = operand(entries, "h" if entries.ndim == 3 else ""), operand(contents.swapaxes(-3, -2), axes)
    return RelativeContent(named[0], *_bucket(bucket, RelativeContent.name), named[1], of == "key")


@term
class Function(OfUser, Mod):
    """A user's function."""

    hides = True

    def __call__(self, score: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
        return self.result(score, i=i, j=j).astype(score.dtype)


def function(fn: Callable, *operands: ArrayLike | Operand) -> Mod:
    """fn(score, i, j, *operands), or fn(score, b, h, i, j, *operands): any function of a score that you can write.

    Arrays that `fn` closes over, traced ones too, become operands without axes: they reach it whole.  Operands and
    closed-over arrays get gradients.

    Args:
      fn: takes the score `[bt, bs]` in float32 or wider, int32 positions i `[bt, 1]` and j `[1, bs]`, and an array for
        each operand; returns scores `[bt, bs]`.  It is elementwise: no pair may depend on which others are in its tile.
        At pairs that the mask hides it may be NaN; the gradient of an operand is 0 there only if its derivative is.
        Where it has two arguments more, the int32 scalars b and h come before the positions: which batch element and
        which query head the tile is of.
      *operands: made with `jattn.operand`; each reaches `fn` broadcastable to `[bt, bs]`.

    Raises:
      TypeError: `fn` is not callable with that many arguments.  When `attention` is called, TypeError or ValueError:
        it returns no floating-point numbers, is not elementwise, or draws random numbers.

    >>> import jax, jax.numpy as jnp, jattn
    >>> tilt = jattn.mods.function(lambda s, i, j, m: s - m * (i - j), jattn.operand(jnp.ones(4), "h"))
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 6, 2, 4))
    >>> def loss(temperature):
    ...     sharper = jattn.mods.function(lambda s, i, j: s * temperature)
    ...     return jattn.attention(q, k, v, mods=(sharper,)).sum()
    >>> bool(jax.grad(loss)(2.0) != 0)
    True

    Source: Dong et al. 2024, "Flex Attention" (score_mod).
    """
    return Function.of("mods.function", fn, operands, "score")
