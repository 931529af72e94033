"""Mods: functions score -> score, applied in order after scaling and before the mask and the normaliser.

Each is a frozen dataclass pytree called with one tile: `score` `[bt, bs]`, positions `i` `[bt, 1]` and `j` `[1, bs]`.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jattn._terms import Operand, Term, counter_hash, indices, number, operand, term
from jattn._terms.closures import Closure, hoist


class Mod(Term):
    """What `attention(mods=...)` takes.  Make one with the functions of this module, or a subclass of your own."""

    hides = False  # whether it may give -inf: such a score is hidden from the mods that follow

    def __call__(self, score: Any, i: Any, j: Any) -> Any:
        raise NotImplementedError


@term
class SoftCap(Mod):
    cap: Any

    def __call__(self, score, i, j):
        del i, j
        return self.cap * jnp.tanh(score / self.cap)


def softcap(cap: Any) -> Mod:
    """cap * tanh(score / cap): keeps scores within (-cap, cap) (Gemma 2, 2024).  `cap` > 0, or a learnable scalar
    array.  A Python number is part of the compiled program, so another one compiles anew; an array is not.

    A score that is -inf before it, by a bias say, is hidden and stays so.

    >>> import jattn
    >>> float(jattn.mods.softcap(30.0)(3000.0, 0, 0))
    30.0
    """
    cap = number(cap, "cap")
    if not isinstance(cap, Operand) and not cap > 0:
        raise ValueError(f"cap must be > 0, got {cap}")
    return SoftCap(cap)


@term
class Alibi(Mod):
    slopes: Any

    def __call__(self, score, i, j):
        return score - self.slopes * jnp.abs(i - j)


def alibi(slopes: Any) -> Mod:
    """score - slopes[h] * abs(i - j): linear biases (Press et al. 2022).  `slopes` `[h]`; learnable.

    `alibi_slopes(heads)` gives the paper's values.
    """
    return Alibi(operand(slopes, "h"))


def alibi_slopes(heads: int) -> jax.Array:
    """ALiBi's slopes for a number of heads: 2^(-8/n), 2^(-16/n), ... with n the power of two below (Press et al.
    2022)."""
    n = 2 ** math.floor(math.log2(heads))
    first = [2.0 ** (-8.0 * (x + 1) / n) for x in range(n)]
    between = [2.0 ** (-4.0 * (2 * x + 1) / n) for x in range(heads - n)]
    return jnp.asarray(first + between)


@term
class Bias(Mod):
    hides = True

    array: Any

    def __call__(self, score, i, j):
        del i, j
        return score + self.array


def bias(array: Any, axes: str) -> Mod:
    """score + array, whose axes are a subset of `"bhts"` in that order, `""` for a scalar.  Learnable, without `[t, s]`
    memory that the array does not have itself.

    >>> import jax.numpy as jnp, jattn
    >>> per_key = jattn.mods.bias(jnp.zeros((2, 5)), "bs")
    """
    named = operand(array, axes)
    if named.array.ndim != len(axes):
        raise ValueError(f"bias with axes {axes!r} needs {len(axes)} axes, got shape {named.array.shape}")
    return Bias(named)


@term
class Relative(Mod):
    hides = True

    table: Any
    closure: Closure  # of the bucket
    held: tuple[Operand, ...] = ()

    def bucket(self, relative: Any) -> Any:
        """Columns of the table, of positions relative to the query."""
        try:
            found = self.closure.build(self.held)(relative)
        except jax.errors.UnexpectedTracerError:
            raise TypeError(
                f"mods.relative: bucket {self.closure.name} uses a traced array that is out of reach when it runs:"
                " let it close over the array itself, or make the bias with jattn.mods.function and jattn.operand"
            ) from None
        if jnp.shape(found) != relative.shape or not jnp.issubdtype(jnp.result_type(found), jnp.integer):
            raise TypeError(
                f"mods.relative: bucket {self.closure.name} must map integers {list(relative.shape)} to as many,"
                f" returns {jnp.result_type(found)}{list(jnp.shape(found))}"
            )
        return found

    def __call__(self, score, i, j):
        # the bias is constant along diagonals: look up each diagonal of the tile once, then shear the strip
        rows, columns = i.shape[0], j.shape[1]
        first = j[0, 0] - i[0, 0] - (rows - 1)
        strip = self.table[self.bucket(first + jnp.arange(rows + columns - 1, dtype=jnp.int32))]
        return score + _shear(strip, rows, columns)


def _shear(strip: Any, rows: int, columns: int) -> Any:
    """[rows + columns - 1] -> [rows, columns], with [r, c] = strip[c - r + rows - 1]: no gather, no scatter in
    reverse."""
    n = rows + columns - 1
    periodic = jnp.broadcast_to(strip, (rows + 1, n)).reshape(-1)
    # row r of a view that is one longer than the period starts r places later in it
    return jnp.flip(periodic[: rows * (n + 1)].reshape(rows, n + 1)[:, :columns], 0)


@dataclasses.dataclass(frozen=True)
class T5Bucket:
    """The bucket of a relative position j - i in T5; made by `t5_bucket`."""

    bidirectional: bool
    buckets: int
    max_distance: int

    def __call__(self, relative: Any) -> Any:
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
    """T5's buckets of j - i: exact up to half of them, logarithmic up to `max_distance` (Raffel et al. 2020).

    `bidirectional` gives the keys after the query buckets of their own (encoders); decoders take False.
    """
    side = buckets // 2 if bidirectional else buckets
    if buckets < 2 + 2 * bidirectional or max_distance <= side // 2:
        raise ValueError(
            f"buckets must be >= {2 + 2 * bidirectional} and max_distance > {side // 2}, got {buckets}, {max_distance}"
        )
    return T5Bucket(bool(bidirectional), buckets, max_distance)


def relative(table: Any, bucket: Callable | None = None) -> Mod:
    """score + table[h, bucket(j - i)]: relative position bias.  `table` `[h, buckets]`, learnable.

    `bucket` maps int32 arrays of j - i to columns of the table; by default `t5_bucket(bidirectional=True)` with as many
    buckets as the table has columns (Raffel et al. 2020).  Memory is that of the table, never `[t, s]`.
    """
    named = operand(table, "h")
    if named.array.ndim != 2:
        raise ValueError(f"table must be [h, buckets], got shape {named.array.shape}")
    bucket = t5_bucket(True, named.array.shape[1]) if bucket is None else bucket
    if not callable(bucket):
        raise TypeError(f"bucket must be a function of j - i, like jattn.mods.t5_bucket(True), got {bucket!r}")
    return Relative(named, *hoist(bucket))


@term
class Function(Mod):
    hides = True

    closure: Closure
    operands: tuple[Operand, ...]
    held: tuple[Operand, ...] = ()

    def __call__(self, score, i, j):
        return jnp.asarray(self.closure.build(self.held)(score, i, j, *self.operands), score.dtype)


def function(fn: Callable, *operands: Operand) -> Mod:
    """fn(score, i, j, *operands): any score function you can write in JAX (He et al. 2024, "FlexAttention").

    It is called on tiles and must be elementwise: `score` `[bt, bs]`, `i` `[bt, 1]`, `j` `[1, bs]`, each operand (made
    with `jattn.operand`) broadcastable to `[bt, bs]`.  Arrays that it closes over, traced ones too, become operands
    without axes: they reach it whole.  Operands and closed-over arrays get gradients.

    >>> import jax, jax.numpy as jnp, jattn
    >>> tilt = jattn.mods.function(lambda s, i, j, m: s - m * (i - j), jattn.operand(jnp.ones(4), "h"))
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 6, 2, 4))
    >>> def loss(temperature):
    ...     sharper = jattn.mods.function(lambda s, i, j: s * temperature)
    ...     return jattn.attention(q, k, v, mods=(sharper,)).sum()
    >>> bool(jax.grad(loss)(2.0) != 0)
    True
    """
    return Function(*function_parts("mods.function", fn, operands, 3))


def function_parts(
    name: str, fn: Any, operands: Any, arguments: int, tables: bool = False
) -> tuple[Closure, tuple[Operand, ...], tuple[Operand, ...]]:
    """A user's function, its operands, and those that it closes over; raises where it cannot be called with them."""
    if not callable(fn):
        raise TypeError(f"{name}: fn must be callable, got {fn!r}")
    closure, held = hoist(fn, tables)
    wanted = arguments + len(operands)
    try:
        inspect.signature(fn).bind(*[None] * wanted)
    except ValueError:  # built-in functions do not tell
        pass
    except TypeError:
        takes = {2: "i, j", 3: "score, i, j" if name.startswith("mods") else "weight, i, j"}[arguments]
        raise TypeError(
            f"{name}: {closure.name}{inspect.signature(fn)} must take ({takes}) and an argument for each of its"
            f" {len(operands)} operands, {wanted} in all; indices of batch elements and heads (FlexAttention's b and h)"
            ' are operands too: jattn.operand(jnp.arange(h), "h")'
        ) from None
    return closure, tuple(x if isinstance(x, Operand) else operand(x) for x in operands), held


@term
class Gumbel(Mod):
    """(score + Gumbel noise) / temperature; the noise is a function of seed, b, h, i, j by `counter_hash`."""

    seed: Any
    temperature: Any
    b: Any = None
    h: Any = None

    def bound(self, b, h):
        return dataclasses.replace(self, b=indices(b, "b"), h=indices(h, "h"))

    def __call__(self, score, i, j):
        u = counter_hash.uniform(counter_hash.bits(self.seed, self.b, self.h, i, j), score.dtype.type)
        return (score - jnp.log(-jnp.log(u))) / self.temperature
