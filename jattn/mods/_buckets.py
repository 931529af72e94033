"""Buckets of relative positions: what the entries of a table are for."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jattn._terms import FieldValue, Operand, is_whole, term
from jattn._terms.closures import Closure
from jattn._terms.of_user import function_parts
from jattn.mods._bias import Bias
from jattn.mods._mod import Mod


@term
class Bucketed(Mod):
    """A mod that looks j - i up in a table."""

    finite = affine = True

    name = "mods.relative"

    table: FieldValue
    closure: Closure  # the bucket without the arrays that it closes over, which `held` has, so that they are operands
    held: tuple[Operand, ...] = ()

    @classmethod
    def parts(cls, bucket: Callable[[jax.Array], jax.Array]) -> tuple[Closure, tuple[Operand, ...]]:
        """A bucket without the arrays that it closes over, and these."""
        if not callable(bucket):
            raise TypeError(f"bucket must be a function of j - i, like jattn.mods.t5_bucket(True), got {bucket!r}")
        _, closure, _, held = function_parts(f"{cls.name}: bucket", bucket, (), "j - i")
        return closure, held

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
        """The table's entries; a bucket before the first or after the last takes the nearer of the two, so that none is
        read from outside the table."""
        return self.table[jnp.clip(self.bucket(relative), 0, len(self.table) - 1)]

    def of_pairs(self, i: jax.Array, j: jax.Array) -> Bias:
        """The same for queries at i `[b, t]` and keys at j `[b, s]`, which need not stand side by side, as one number
        for each pair: a tile then has no diagonals, and kernels look up nothing else."""
        bound = dataclasses.replace(self, held=tuple(x.array for x in self.held))
        relative = j[:, None] - i[..., None]
        columns = bound.bucket(relative.reshape(-1)).reshape(relative.shape)
        last = self.table.array.shape[len(self.table.axes)] - 1
        return Bias(Operand(self.at_columns(jnp.clip(columns, 0, last)), "bhts"))

    def at_columns(self, columns: jax.Array) -> jax.Array:
        """What is added to the scores `[b, h, t, s]` of pairs with these columns of the table, `[b, t, s]`."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class T5Bucket:
    """The bucket of a relative position j - i in T5; made by `t5_bucket`.

    >>> import jax.numpy as jnp, jattn
    >>> bucket = jattn.mods.T5Bucket(bidirectional=True, buckets=32, max_distance=128)
    >>> bucket == jattn.mods.t5_bucket(True)
    True
    >>> bucket(jnp.array([-1000, -1, 0, 1, 1000])).tolist()
    [15, 1, 0, 17, 31]
    """

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
      TypeError: one of the two is no int.

    >>> import jax.numpy as jnp, jattn
    >>> bucket = jattn.mods.t5_bucket(bidirectional=False)
    >>> bucket(jnp.array([1, 0, -1, -15, -16, -1000])).tolist()
    [0, 0, 1, 15, 16, 31]

    Source: Raffel et al. 2020, section 2.1, and its code.
    """
    if not all(map(is_whole, (buckets, max_distance))):
        raise TypeError(f"buckets and max_distance must be ints, got {buckets!r}, {max_distance!r}")
    side = buckets // 2 if bidirectional else buckets
    if buckets < 2 + 2 * bidirectional or max_distance <= side // 2:
        raise ValueError(
            f"buckets must be >= {2 + 2 * bidirectional} and max_distance > {side // 2}, got {buckets}, {max_distance}"
        )
    return T5Bucket(bool(bidirectional), int(buckets), int(max_distance))
