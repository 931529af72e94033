"""The walk over the tiles of one call: which are visited, what is cut for them, and their scores.

Query rows are taken a strip at a time; for each strip a loop visits first the full key blocks, which never look at the
mask, then the partial ones; empty blocks are never visited.  Where all keys are one block there is no loop and no
table: the strip looks at them once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jattn import _terms
from jattn._terms import AnyArray, Terms, block_tables
from jattn._terms.moved import moved
from jattn._terms.reach import span
from jattn.backends.blockwise.products import Joined, PerHead
from jattn.backends.blockwise.sizes import Geometry, QueryStrip, on_gpu
from jattn.backends.contract import Shaped, Spec
from jattn.backends.pages import Paged
from jattn.backends.steps import Step, split
from jattn.scores import Product


def _loop(upper: int | Callable[[], jax.Array], body: Callable, carry: object) -> Any:
    """`fori_loop` from 0 that leaves out the loop around a single step.

    Where the end is known only at run time it is looked up before every step, which is one kernel: a number that is
    carried into a loop is one more that XLA compiles.
    """
    if callable(upper):
        step = lambda state: (state[0] + 1, body(*state))
        return jax.lax.while_loop(lambda state: state[0] < upper(), step, (jnp.int32(0), carry))[1]
    if upper <= 1:
        return body(0, carry) if upper else carry
    return jax.lax.fori_loop(jnp.int32(0), jnp.int32(upper), body, carry)


class TilePlace(NamedTuple):
    """Where a tile lies."""

    step: Step
    first: int | jax.Array | None = None
    """The first key that belongs to no other tile, None for the tile's own first."""


class VisitedTile(NamedTuple):
    """A tile that is visited."""

    step: Step
    masked: bool | jax.Array
    """Whether some pairs do not attend in it, by the mask or since its first keys belong to another tile: False, True,
    or a flag known only in the loop."""
    place: Callable[[], TilePlace]
    """Computes its place once more: numbers that a branch is given are kernels of their own, which XLA compiles."""

    def choose(self, partial: Callable, full: Callable) -> Any:
        """partial() if some pairs do not attend, full() if all do; only that one is computed."""
        if isinstance(self.masked, bool):
            return partial() if self.masked else full()
        return jax.lax.cond(self.masked, partial, full)


class Walk:
    """Visits the tiles of one call."""

    axes: tuple[str, ...]
    dtype: jnp.dtype
    spec: Spec
    arrays: Sequence[Any]
    terms: Terms
    geo: Geometry
    products: Joined | PerHead
    product: bool
    """Whether scores are products, which `products` computes."""
    table: block_tables.BlockTable
    """Which key blocks a strip visits; only where there are several."""

    def __init__(self, spec: Spec, geo: Geometry, q: Shaped, operands: Sequence[Any]):
        self.axes, self.dtype = spec.signature.axes, jnp.promote_types(q.dtype, jnp.float32)
        self.spec, self.arrays, self.terms = spec, operands, spec.terms(operands)
        self.geo = geo
        narrow = self.geo.group * self.geo.query.block < q.shape[-1]
        self.products = Joined(spec.precision) if self.geo.joined else PerHead(spec.precision, narrow)
        self.product = isinstance(self.terms.compare, Product)
        if geo.key.count > 1:  # made here and not at its first use, which is inside the loop over strips
            self.table = block_tables.table(moved(self.terms), geo.query, geo.key, geo.batch, geo.heads * geo.group)

    def strips(self, body: Callable, carry: object) -> Any:
        """carry = body(strip, carry) for every strip of query rows."""
        return _loop(self.geo.strips, lambda n, carry: body(self.geo.strip(n), carry), carry)

    def keys(self, strip: QueryStrip, body: Callable, carry: object) -> Any:
        """carry = body(tile, carry) for every key block of a strip, the full ones first.

        One loop visits both kinds, so that the program holds its body once.
        """
        if self.geo.key.count == 1:
            masked = self.terms.mask is not None and self._looks(strip.n)
            return body(VisitedTile(strip.step, masked, lambda: TilePlace(strip.step)), carry)
        _, full, partial = self.table
        fulls, partials = _uniform(full), _uniform(partial)
        masked = {(True, False): True, (False, True): False}.get((fulls == 0, partials == 0))

        def full_blocks(strip: QueryStrip) -> Any:
            return block_tables.number_at(full, self._row(strip)) if fulls is None else fulls

        def blocks() -> Any:
            here = self.geo.strip(strip.n)
            return full_blocks(here) + (
                block_tables.number_at(partial, self._row(here)) if partials is None else partials
            )

        def visit(n: int | jax.Array, carry: object) -> Any:
            at = strip.n
            if isinstance(n, jax.Array) and isinstance(at, jax.Array):
                # XLA would compute a strip's numbers before the loop over its keys, each by a kernel that it compiles;
                # in the loop they are computed where they are used.
                at, n = jax.lax.optimization_barrier((at, n))
            place = lambda: self._place(self.geo.strip(at), n)
            looks = n >= full_blocks(self.geo.strip(at)) if masked is None else masked and self._looks(n)
            return body(VisitedTile(place().step, looks, place), carry)

        known = None if fulls is None or partials is None else fulls + partials
        return _loop(blocks if known is None else known, visit, carry)

    def _row(self, strip: QueryStrip) -> tuple[Any, Any, Any]:
        """The indices of a strip in the tables."""
        batches, heads = self.table.full.shape[:2]
        return split(strip.batch, batches)[1], strip.head if heads > 1 else 0, strip.block

    def _place(self, strip: QueryStrip, n: int | jax.Array) -> TilePlace:
        """The n-th tile of a strip."""
        key = self.geo.key
        block = n if self.table.in_order else self.table.block(self._row(strip), n)
        step = strip.step.along("s", key.start(block), key.block)
        return TilePlace(step, None if key.whole else block * key.block)

    def _looks(self, index: int | jax.Array) -> bool | jax.Array:
        """That a tile's mask is looked at, where that is certain: True, or a flag if the mask holds arrays.

        XLA fuses no branch with the scores.  In one loop with them its CPU reads such arrays a number at a time: packed
        documents of one tile took twice as long as a causal mask.  A GPU would wait for the flag of every tile.
        """
        arrays = any(np.ndim(x) for x in jax.tree.leaves(self.terms.mask))
        return index >= 0 if isinstance(index, jax.Array) and arrays and not on_gpu(self.spec.target) else True

    def tiles(self, step: Step, arrays: Sequence[AnyArray] | None = None) -> list[jax.Array]:
        return [step.operand(a, x) for a, x in zip(self.arrays if arrays is None else arrays, self.axes, strict=True)]

    def rows(self, step: Step, array: jax.Array, live: jax.Array | None = None) -> jax.Array:
        """The query tile of `array`; rows that are not `live` are 0."""
        x = step.rows(array).astype(self.dtype)
        return x if live is None else jnp.where(live.reshape(*live.shape, *[1] * (x.ndim - live.ndim)), x, 0)

    def live(self, place: TilePlace, tiles: list[jax.Array]) -> jax.Array:
        """Which pairs of a tile attend in it, `[b|1, g|1, r|1, bt, bs]`."""
        i, j = place.step.positions()
        fresh = True if place.first is None else jnp.broadcast_to(j >= place.first, (i.shape[0], j.shape[1]))
        if self.terms.mask is None:
            return jnp.asarray(fresh)[None, None, None]
        live = _terms.lift(lambda tiles: self.spec.signature.fill(tiles).attends(i, j) & fresh, self.axes, ())(tiles)
        has = [any(a in axes for axes in self.axes) for a in "bhh"]
        sizes = (self.geo.batch, self.geo.heads, self.geo.group)
        return live.reshape(*(n if y else 1 for n, y in zip(sizes, has, strict=True)), *live.shape[-2:])

    def shown(self, tile: VisitedTile, tiles: list[jax.Array]) -> jax.Array | None:
        """Which pairs of a tile the mask lets attend and belong to no other tile, as `live`; None where all do."""
        if tile.masked is False:
            return None
        # The mask's tile is chosen and not the scores': a branch that gives back what it was given copies it.
        some = lambda: self.live(tile.place(), tiles)
        return tile.choose(some, lambda: jnp.ones_like(some()))

    def seen(self, tile: VisitedTile, tiles: list[jax.Array]) -> Any:
        """Which keys of a tile some query of it sees, `[b|1, g|1, bs]`; None where the mask is not looked at.

        The others are 0 to the products, whatever stands in them: 0 * NaN would be NaN.  Where it is certain that
        every key is seen by some query of the call none needs to be.
        """
        lengths = self.geo.query.length, self.geo.key.length
        if tile.masked is False or span(moved(self.terms)).shows_all(*lengths):
            return None
        some = lambda: jnp.any(self.live(tile.place(), tiles), axis=(2, 3))
        return tile.choose(some, lambda: jnp.ones_like(some()))

    def key(self, step: Step, array: jax.Array | Paged, seen: jax.Array | None) -> jax.Array:
        return self.products.key(step, array, self.dtype, seen)

    def scale(self) -> tuple[Any, int | None]:
        """The number that queries are multiplied by, or which operand it is."""
        marks = [object() for _ in self.axes]
        scale = self.spec.signature.fill(marks).compare.scale if self.product else 1
        return scale, next((n for n, mark in enumerate(marks) if mark is scale), None)

    def scaled(self, step: Step, query: jax.Array) -> tuple[jax.Array, Callable[..., Any]]:
        """The query tile times the score's scale, and its transpose: gradients of the tile and of the scale's tile."""
        scale, at = self.scale()
        if at is None:
            return query * scale, lambda d: (d * scale, None)
        times = _terms.lift(lambda x, tiles: x * tiles[0], (self.axes[at],), ("bgr",))
        return jax.vjp(lambda x, y: times(x, [y]), query, step.operand(self.arrays[at], self.axes[at]))

    def finish(self, step: Step, shown: jax.Array | None = None) -> Callable:
        """Scores of a tile `[b, g, r, bt, bs]`, without the mask, as a function of its products and operand tiles.

        Where pairs are not `shown` it has no derivative, which a mod may not have there.
        """
        i, j = step.positions()
        one = lambda score, live, tiles: self.spec.signature.fill(tiles).finish(score, i, j, masked=False, fresh=live)
        if shown is None or _terms.finite(self.terms.mods):
            return _terms.lift(lambda score, tiles: one(score, True, tiles), self.axes, ("bgr",))
        every = _terms.lift(one, self.axes, ("bgr", "bgr"))
        return lambda score, tiles: every(score, jnp.broadcast_to(shown, score.shape), tiles)

    def compared(self) -> Callable:
        """Query against key for the pairs of a tile, as a function of its scaled query, key and operand tiles."""
        if self.product:
            return lambda query, key, tiles: self.products.scores(query, key)
        one = lambda query, key, tiles: self.spec.signature.fill(tiles).compare(query, key)
        return _terms.lift(one, self.axes, ("bgr", "bg"))

    def scores(self, step: Step, shown: jax.Array | None = None) -> Callable:
        """Scores of a tile, as `finish` has them, as a function of the same."""
        compared, finish = self.compared(), self.finish(step, shown)
        return lambda query, key, tiles: finish(compared(query, key, tiles), tiles)

    def pull_scores(
        self, step: Step, query: jax.Array, key: jax.Array, tiles: list[jax.Array], shown: jax.Array | None
    ) -> tuple[jax.Array, Callable[..., Any]]:
        """`jax.vjp` of `scores`, with the transposes of products written out; 0 where pairs are not `shown`."""
        if self.product:
            compared, pull = self.products.scores(query, key), self._pull_product(query, key)
        else:
            compared, pull = jax.vjp(self.compared(), query, key, tiles)
        scores, pull_finish = jax.vjp(self.finish(step, shown), compared, tiles)

        def pull_all(ds: jax.Array):
            ds, of_mods = pull_finish(ds)
            dquery, dkey, dtiles = pull(ds)
            add = lambda x, y: y if x is None or y.dtype == jax.dtypes.float0 else x + y
            return dquery, dkey, list(map(add, dtiles, of_mods))

        return scores, pull_all

    def _pull_product(self, query: jax.Array, key: jax.Array) -> Callable[..., Any]:
        """The transpose of a tile's products, which have no operands."""

        def pull(ds: jax.Array):
            ds = jax.lax.optimization_barrier(ds)
            return self.products.rows(ds, key), self.products.columns(ds, query), [None] * len(self.axes)

        return pull

    def weights(self, tile: VisitedTile) -> Callable:
        """What the gates make of weights `[b, g, r, bt, bs]`, as a function of weights and operand tiles."""
        i, j = tile.step.positions()
        masked = tile.masked is not False
        one = lambda w, tiles: self.spec.signature.fill(tiles).weights(w, i, j, masked)
        return _terms.lift(one, self.axes, ("bgr",))

    def put_key(self, step: Step, array: jax.Array, tile: jax.Array) -> jax.Array:
        """The gradient of a key or value array with that of a tile: added, unless each key is visited once at most."""
        once = self.geo.query.count == 1 and self.geo.key.whole and array.shape[0] == self.geo.b
        return self.products.put(step, array, tile, add=not once)


def hide(scores: jax.Array, shown: jax.Array | None) -> jax.Array:
    """The scores of a tile, -inf where pairs are not `shown`; None: all are."""
    return scores if shown is None else jnp.where(shown, scores, -jnp.inf)


def _uniform(counts: AnyArray) -> int | None:
    """The one value of a static array, None if there are several or they are known only at run time."""
    if isinstance(counts, np.ndarray) and counts.min() == counts.max():
        return int(counts.min())
    return None


def nothing(q: jax.Array, k: jax.Array | Paged) -> bool:
    """Whether there is no pair at all."""
    return 0 in (*q.shape[:2], *k.shape[:2])


def probabilities(scores: jax.Array, lse: jax.Array, remainder: jax.Array) -> jax.Array:
    """exp(scores - lse), less what rounding took from lse; 0 in rows that see nothing."""
    above = jnp.where(lse == -jnp.inf, jnp.inf, lse)
    return jnp.exp(scores - above[..., None] - remainder[..., None])
