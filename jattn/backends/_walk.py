"""The walk over the tiles of one call: which are visited, what is cut for them, and their scores.

Query rows are taken a strip at a time; for each strip a loop visits the full key blocks, which never look at the mask,
and another the partial ones; empty blocks are never visited.  Where all keys are one block there is no loop and no
table: the strip looks at them once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jattn import _blocks, _terms
from jattn._geometry import Geometry, Step
from jattn._problem import Spec
from jattn.backends._products import Joined, PerHead
from jattn.scores import Product


def _loop(lower: Any, upper: Any, body: Callable, carry: Any) -> Any:
    """`fori_loop` that leaves out loops known to be empty, and the loop around a single step."""
    if isinstance(lower, int) and isinstance(upper, int) and upper - lower <= 1:
        return body(lower, carry) if upper > lower else carry
    return jax.lax.fori_loop(jnp.int32(lower), jnp.int32(upper), body, carry)


class Walk:
    """Visits the tiles of one call."""

    def __init__(self, spec: Spec, geo: Geometry, q: Any, operands: Any):
        self.axes, self.dtype = spec.signature.axes, jnp.promote_types(q.dtype, jnp.float32)
        self.spec, self.arrays, self.terms = spec, operands, spec.terms(operands)
        self.geo = geo
        narrow = self.geo.group * self.geo.query.block < q.shape[-1]
        self.products = Joined(spec.precision) if self.geo.joined else PerHead(spec.precision, narrow)
        self.product = isinstance(self.terms.compare, Product)

    @functools.cached_property
    def table(self) -> _blocks.BlockTable:
        mask, heads = self.terms.mask, self.geo.heads * self.geo.group
        return _blocks.table(mask, self.geo.query, self.geo.key, self.geo.batch, heads)

    def strips(self, body: Callable, carry: Any) -> Any:
        """carry = body(step, indices, carry) for every strip of query rows."""
        return _loop(0, self.geo.strips, lambda n, c: body(*self.geo.strip(n), c), carry)

    def keys(self, step: Step, where: tuple[Any, Any, Any], body: Callable, carry: Any) -> Any:
        """carry = body(tile, masked, fresh, carry) for every key block of a strip, the full ones first.

        `fresh` is which pairs of the tile belong to no other tile, True for all.
        """
        if self.geo.key.count == 1:
            return body(step, self.terms.mask is not None, True, carry)
        batch, head, block = where
        _, full, partial = self.table
        row = (batch % full.shape[0], head if full.shape[1] > 1 else 0, block)
        fulls, partials = _uniform(full), _uniform(partial)
        all_full = fulls == self.geo.key.count
        if fulls is None or partials is None:
            fulls, partials = jnp.asarray(full)[row], jnp.asarray(partial)[row]

        def visit(masked):
            def one(n, carry):
                c = n if all_full else self.table.block(row, n)
                here = step.along("s", self.geo.key.start(c), self.geo.key.block)
                fresh = True
                if masked and not self.geo.key.whole:
                    fresh = here.positions()[1] >= c * self.geo.key.block
                return body(here, masked, fresh, carry)

            return one

        carry = _loop(0, fulls, visit(False), carry)
        return _loop(fulls, fulls + partials, visit(True), carry)

    def tiles(self, step: Step, arrays: Any = None) -> list[jax.Array]:
        return [step.operand(a, x) for a, x in zip(self.arrays if arrays is None else arrays, self.axes, strict=True)]

    def rows(self, step: Step, array: jax.Array, live: Any = None) -> jax.Array:
        """The query tile of `array`; rows that are not `live` are 0."""
        x = step.rows(array).astype(self.dtype)
        return x if live is None else jnp.where(live.reshape(*live.shape, *[1] * (x.ndim - live.ndim)), x, 0)

    def seen(self, step: Step, masked: bool, fresh: Any, tiles: list[jax.Array]) -> Any:
        """Which keys of a tile some query of it sees, `[b|1, g|1, bs]`; None where the mask is not looked at.

        The others are 0 to the products, whatever stands in them: 0 * NaN would be NaN.
        """
        if not masked or self.terms.mask is None:
            return None
        i, j = step.positions()
        seen = _terms.lift(lambda tiles: self.spec.signature.fill(tiles).mask(i, j) & fresh, self.axes, ())(tiles)
        heads = any("h" in axes for axes in self.axes)
        seen = seen.reshape(*(seen.shape[:1] if any("b" in axes for axes in self.axes) else (1,)), -1, *seen.shape[-2:])
        seen = seen.reshape(seen.shape[0], self.geo.heads if heads else 1, -1, seen.shape[-1])
        return jnp.any(seen, axis=2)

    def key(self, step: Step, array: jax.Array, seen: Any) -> jax.Array:
        return self.products.key(step, array, self.dtype, seen)

    def scale(self) -> tuple[Any, int | None]:
        """The number that queries are multiplied by, or which operand it is."""
        marks = [object() for _ in self.axes]
        scale = self.spec.signature.fill(marks).compare.scale if self.product else 1
        return scale, next((n for n, mark in enumerate(marks) if mark is scale), None)

    def scaled(self, step: Step, query: jax.Array) -> tuple[jax.Array, Callable]:
        """The query tile times the score's scale, and its transpose: gradients of the tile and of the scale's tile."""
        scale, at = self.scale()
        if at is None:
            return query * scale, lambda d: (d * scale, None)
        times = _terms.lift(lambda x, tiles: x * tiles[0], (self.axes[at],), ("bgr",))
        return jax.vjp(lambda x, y: times(x, [y]), query, step.operand(self.arrays[at], self.axes[at]))

    def finish(self, step: Step, masked: bool, fresh: Any) -> Callable:
        """Scores of a tile `[b, g, r, bt, bs]` as a function of its products and operand tiles."""
        i, j = step.positions()

        def one(score, tiles):
            return self.spec.signature.fill(tiles).finish(score, i, j, masked, fresh)

        return _terms.lift(one, self.axes, ("bgr",))

    def scores(self, step: Step, masked: bool, fresh: Any) -> Callable:
        """Scores of a tile `[b, g, r, bt, bs]` as a function of its scaled query, key and operand tiles."""
        if self.product:
            finish = self.finish(step, masked, fresh)
            return lambda query, key, tiles: finish(self.products.scores(query, key), tiles)
        i, j = step.positions()

        def one(query, key, tiles):
            return self.spec.signature.fill(tiles).scores(query, key, i, j, masked, fresh)

        return _terms.lift(one, self.axes, ("bgr", "bg"))

    def pull_scores(
        self, step: Step, masked: bool, fresh: Any, query: jax.Array, key: jax.Array, tiles: list[jax.Array]
    ) -> tuple[jax.Array, Callable]:
        """`jax.vjp` of `scores`, with the products of its transpose written out."""
        if not self.product:
            return jax.vjp(self.scores(step, masked, fresh), query, key, tiles)
        scores, pull = jax.vjp(self.finish(step, masked, fresh), self.products.scores(query, key), tiles)

        def pull_all(ds):
            ds, dtiles = pull(ds)
            ds = jax.lax.optimization_barrier(ds)
            return self.products.rows(ds, key), self.products.columns(ds, query), dtiles

        return scores, pull_all

    def weights(self, step: Step) -> Callable:
        """What the gates make of weights `[b, g, r, bt, bs]`, as a function of weights and operand tiles."""
        i, j = step.positions()
        return _terms.lift(lambda w, tiles: self.spec.signature.fill(tiles).weights(w, i, j), self.axes, ("bgr",))

    def put_key(self, step: Step, array: jax.Array, tile: jax.Array) -> jax.Array:
        """The gradient of a key or value array with that of a tile: added, unless each key is visited once at most."""
        once = self.geo.query.count == 1 and self.geo.key.whole and array.shape[0] == self.geo.b
        return self.products.put(step, array, tile, add=not once)


def _uniform(counts: Any) -> int | None:
    """The one value of a static array, None if there are several or they are known only at run time."""
    if isinstance(counts, np.ndarray) and counts.min() == counts.max():
        return int(counts.min())
    return None
