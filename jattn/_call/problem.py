"""One call to attention, checked and complete; and the same call reduced to what the fused backends compute."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax

from jattn import _terms
from jattn._terms import FieldValue, Origin, Shaped, Signature, Terms, term
from jattn._terms.rows import finite_rows
from jattn.gates import Gate
from jattn.masks import Mask
from jattn.mods import Mod
from jattn.normalizers import Normalizer
from jattn.scores import Dot, Perceptron, Product, Reduced, Score


@term
class Problem(_terms.Term):
    """What `attention` computes, with nothing left to default: arrays `[b, t, h, d]`, `[b, s, g, d]`, `[b, s, g,
    e]`; with `pages` `[b, m]`, keys and values are pools `[p, page, g, d]` and `[p, page, g, e]`; with `scales` they
    are these numbers times those of each row and head."""

    query: FieldValue
    key: FieldValue
    value: FieldValue
    score: Score
    normalizer: Normalizer
    mask: Mask | None
    mods: tuple[Mod, ...]
    gates: tuple[Gate, ...]
    sinks: FieldValue  # an operand [h], or None
    precision: jax.lax.Precision | None
    origin: Origin = Origin()
    pages: FieldValue = None  # int32, or None where keys and values are no pools
    scales: tuple[jax.Array, jax.Array] | None = None  # of keys and of values, of their shapes but for the width

    @property
    def empty(self) -> bool:
        """Whether there is no query, no key or no batch element."""
        return any(isinstance(self.sizes[a], int) and self.sizes[a] == 0 for a in "bts")

    @property
    def sizes(self) -> dict[str, Any]:  # ints, but for the symbols of `jax.export`
        (b, t, h, d), (_, s, g, e) = self.query.shape, self.value.shape
        if self.pages is not None:
            s *= self.pages.shape[1]
        return {"b": b, "t": t, "s": s, "h": h, "g": g, "d": d, "e": e}


class Tiled(NamedTuple):
    """A problem as products of tiles and terms between them; the softmax's sinks are left for later."""

    query: jax.Array
    key: jax.Array
    value: jax.Array
    operands: list[Any]
    signature: Signature


def _reduced(score: Score, query: jax.Array, key: jax.Array) -> Reduced:
    """`score.reduce`, whose weights get no gradient of rows that see nothing and of keys that nobody sees."""
    if isinstance(score, Dot):
        return score.reduce(query, key)
    query, of_query = finite_rows(query)
    if key.dtype.itemsize == 1:  # of 8 bits, with scales: it is stored as it is
        reduced = score.reduce(query, key)
        return reduced._replace(query=reduced.query + of_query)
    key, of_key = finite_rows(key)
    reduced = score.reduce(query, key)
    of_key = _terms.repeated(of_key, reduced.key.shape[2] // key.shape[2], 2)
    return reduced._replace(query=reduced.query + of_query, key=reduced.key + of_key)


def reduce(problem: Problem) -> Tiled:
    """Turns every score into a transformed query and key, and all else into terms."""
    query, key, compare, first = _reduced(problem.score, problem.query, problem.key)
    if isinstance(compare, Product):
        compare = dataclasses.replace(compare, precision=problem.precision)
    value = problem.value
    if key.shape[2] != value.shape[2]:  # a score that projects keys for every query head apart
        value = _terms.repeated(value, key.shape[2] // value.shape[2], 2)
    modified, origin = (*first, *problem.mods, *problem.normalizer.mods), problem.origin
    terms = Terms(compare, modified, problem.mask, problem.gates, origin.offsets)
    operands, signature = _terms.split(terms.bound(*origin.indices(query.shape[0], query.shape[2])))
    return Tiled(query, key, value, operands, signature)


def tile_width(terms: Terms, query: Shaped) -> int:
    """How many numbers a tile holds for each of its pairs while it is computed."""
    return query.shape[-1] if isinstance(terms.compare, Perceptron) else 1
