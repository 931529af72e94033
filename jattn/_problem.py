"""One call to attention, checked and complete; and the same call reduced to what the fused backends compute."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jattn import _terms
from jattn._target import Target
from jattn._terms import Signature, Terms, piece
from jattn.gates import Gate
from jattn.masks import Mask
from jattn.mods import Mod
from jattn.normalizers import Normalizer
from jattn.scores import Perceptron, Product, Score


@piece
class Problem(_terms.Term):
    """What `attention` computes, with nothing left to default: arrays `[b, t, h, d]`, `[b, s, g, d]`, `[b, s, g,
    e]`."""

    query: Any
    key: Any
    value: Any
    score: Score
    normalizer: Normalizer
    mask: Mask | None
    mods: tuple[Mod, ...]
    gates: tuple[Gate, ...]
    sinks: Any  # an operand [h], or None
    precision: Any

    @property
    def sizes(self) -> dict[str, int]:
        (b, t, h, d), (_, s, g, e) = self.query.shape, self.value.shape
        return {"b": b, "t": t, "s": s, "h": h, "g": g, "d": d, "e": e}


@dataclasses.dataclass(frozen=True)
class PassSizes:
    """A kernel's own tile sizes for each pass, used as they are; for None it takes its table's.

    What benchmarks and tests hand to `attention(blocks=...)`: a backend without such sizes goes by its own.
    """

    forward: Any = None
    backward: Any = None


@dataclasses.dataclass(frozen=True)
class Spec:
    """What is static about a call of the primitives."""

    backend: str
    signature: Signature  # of the `Terms`
    dtype: Any  # of the output
    precision: Any
    blocks: tuple[int, int] | PassSizes | None
    target: Target

    @property
    def tile(self) -> tuple[int, int] | None:
        """Query and key rows of a tile, where the call says them for whichever backend runs it."""
        return None if isinstance(self.blocks, PassSizes) else self.blocks

    def kernels(self) -> Any:
        """The backend's module, with `forward`, `tangent` and `backward`."""
        return importlib.import_module(f"jattn.backends.{self.backend.removeprefix('pallas_')}")

    def terms(self, operands: Any) -> Terms:
        """The terms with their operands whole."""
        return self.signature.fill([_terms.Operand(*x) for x in zip(operands, self.signature.axes, strict=True)])


class Result(NamedTuple):
    """What a backend's forward pass gives, and its derivatives start from.

    A float32 of -1e9 has no place for the log of a sum: the derivatives' weights are exp(score - lse - remainder).
    """

    out: jax.Array  # [b, t, h, e]
    lse: jax.Array  # [b, t, h]
    remainder: jax.Array  # [b, t, h], what rounding took from lse


class Cut(NamedTuple):
    """How a backend cuts the work of a call, for `explain`."""

    tile: tuple[int, int]
    blocks: tuple[int, int, int] | None  # empty, partial and full, over batch and heads
    tuned: str | None = None
    milliseconds: float | None = None
    pairs: int | None = None  # of queries and keys in the blocks that are visited, where some hang over the ends


class Reduced(NamedTuple):
    """A problem as products of tiles and terms between them; the softmax's sinks are left for later."""

    query: jax.Array
    key: jax.Array
    value: jax.Array
    operands: list[Any]
    signature: Signature


def reduce(problem: Problem) -> Reduced:
    """Turns every score into a transformed query and key, and all else into terms."""
    query, key, compare, first = problem.score.reduce(problem.query, problem.key)
    if isinstance(compare, Product):
        compare = dataclasses.replace(compare, precision=problem.precision)
    value = problem.value
    if key.shape[2] != value.shape[2]:  # a score that projects keys for every query head apart
        value = jnp.repeat(value, key.shape[2] // value.shape[2], axis=2)
    terms = Terms(compare, (*first, *problem.mods, *problem.normalizer.mods), problem.mask, problem.gates)
    operands, signature = _terms.split(terms.bound(query.shape[0], query.shape[2]))
    return Reduced(query, key, value, operands, signature)


def tile_width(terms: Terms, query: jax.Array) -> int:
    """How many numbers a tile holds for each of its pairs while it is computed."""
    return query.shape[-1] if isinstance(terms.compare, Perceptron) else 1
