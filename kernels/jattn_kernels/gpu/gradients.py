"""What all backward kernels compute of a tile: weights, and the gradients of its products and of the operands."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jattn_kernels.gpu.block import ThreadBlock
from jattn_kernels.gpu.layout import Diagonals, TileNumbers
from jattn_kernels.gpu.lowering import Row
from jattn_kernels.tiles.functions import LOG2E
from jattn_kernels.tiles.place import Index

UNSEEN = float("inf")  # the lse of rows that see nothing or do not exist: every exp2(score - it) is 0


class OfQueries(NamedTuple):
    """What a tile needs to know of its queries, float32; what the rounding of lse takes from the weights is a factor of
    dout and of delta."""

    lse: Any  # times log2(e) unless scores are natural; `UNSEEN` where there is nothing to see
    delta: Any  # the sum of dout * out, less the cotangent of lse


Held = jax.Array | tuple[()] | None
"""What is held of a tile until all of it is there: an array; `()` where it stands in memory; None if none needs it."""


def _numbers(part: Any, i: jax.Array, j: jax.Array) -> jax.Array:
    """What a tile takes of a part: of diagonals those that were looked up, which get the gradient."""
    return part.at(i, j) if isinstance(part, Diagonals) else part


def _in_place_of(part: Any, numbers: jax.Array) -> Any:
    return TileNumbers(numbers) if isinstance(part, Diagonals) else numbers


class GradientBlock(ThreadBlock):
    """A block that computes gradients: the operands whose numbers are `learned` get theirs along its rows."""

    learned: Sequence[int]

    def keep(self, wg: Index, columns: slice, weight: jax.Array | None, ds: jax.Array | None) -> tuple[Held, Held]:
        """What is held of the weights of some columns and of the gradients of their scores, None where those are not
        active, until all of the tile's are there: a product takes them in 16 bits."""
        del wg, columns
        return weight, ds

    def as_rows(self, parts: Sequence[Any]) -> list[Any]:
        """The parts, of which those that are learned and have no place along rows are spread over them: a gradient
        then has each row's share."""
        rows = (self.sizes.height,)
        spread = lambda x: x if isinstance(x, Row) else Row(self.machine.full(x, rows, "row"))
        return [spread(x) if n in self.learned else x for n, x in enumerate(parts)]

    def of_tile(
        self,
        product: jax.Array,
        dp: jax.Array,
        i: jax.Array,
        j: jax.Array,
        of_queries: OfQueries,
        parts: Sequence[Any],
        masked: bool,
    ) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
        """Weights after the gates, the gradient of the products without their scale, and of what is `learned`.

        Evaluated as a term is: of arrays `[rows, columns]`, `[rows, 1]` and `[1, columns]`.
        """
        parts = self.of_rows_that_see(of_queries.lse, parts)
        real: Any = True
        if masked and not self.functions.finite and self.overhangs:
            real = (i < self.t) & (j < self.s)  # past the ends a mod may be NaN or have no derivative
        some, gradients = [_numbers(parts[n], i, j) for n in self.learned], []

        def filled(some: Sequence[Any]) -> list[Any]:
            replaced = {n: _in_place_of(parts[n], x) for n, x in zip(self.learned, some, strict=True)}
            return [replaced.get(n, x) for n, x in enumerate(parts)]

        scores = lambda x, some: self.scores(x, i, j, filled(some), masked, real)
        score, pull = jax.vjp(scores, product, some) if self.functions.scaled else (scores(product, some), None)
        if self.functions.natural:
            p = jnp.exp2((score - of_queries.lse) * self.unit())
        else:
            p = jnp.exp2(score * self.unit() - of_queries.lse)
        weight, gates = p, self.functions.weights
        if gates is not None:
            weight, pull_gates = jax.vjp(lambda p, some: gates(p, i, j, masked, filled(some)), p, some)
            dp, of_some = pull_gates(dp)
            gradients.append(of_some)
        ds = p * (dp - of_queries.delta)
        if pull is not None:
            ds, of_some = pull(ds)
            gradients.append(of_some)
        sums = [functools.reduce(jnp.add, x) for x in zip(*gradients, strict=True)]
        return weight, ds, sums if gradients else [0 * x for x in some]

    def of_rows_that_see(self, lse: jax.Array, parts: Sequence[Any]) -> list[Any]:
        """1, which no mod minds, for what queries have that see nothing: 0 * NaN is NaN in a gradient too."""
        if not self.functions.blind:
            return list(parts)
        of_queries = [x.along == "t" and jnp.issubdtype(x.dtype, jnp.floating) for x in self.staging.layouts]
        return [jnp.where(lse != UNSEEN, x, 1.0) if y else x for x, y in zip(parts, of_queries, strict=True)]

    @property
    def overhangs(self) -> bool:
        """Whether tiles hang over the end of the queries or of the keys; those that do look at the mask."""
        sizes, rows = self.sizes, self.staging.rows
        queries, keys = (sizes.rows, sizes.columns) if rows == "t" else (sizes.columns, sizes.rows)
        return bool(self.t % queries or self.s % keys)

    def factor(self) -> float:
        """What the sums of the products' gradients lack: the scale, unless the scores were made of it."""
        return 1.0 if self.functions.scaled else self.unit() / LOG2E
