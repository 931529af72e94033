"""Terms: pure functions of one tile of scores, its positions, and operands that say which axes they have.

A mask, a mod, a gate and a score are each a small frozen dataclass.  Fields that hold arrays (as `Operand`s) are pytree
leaves and get gradients; everything else is static.  A backend cuts the operands to its tile and puts those into the
dataclass: the term then computes on plain arrays and never learns what a tile is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeAlias, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_pytree_node

from jattn._terms.operand import Operand, plain

if TYPE_CHECKING:
    from jattn.gates import Gate
    from jattn.masks import Mask
    from jattn.mods import Mod

T = TypeVar("T")

FieldValue: TypeAlias = Any
"""What a field of a term holds: a number or an `Operand`, which is an array once a backend has cut it to its tile, and
a `Range` while the mask is asked for whole blocks.  No type is all of these by turns."""


class Term:
    """Base of masks, mods, gates, scores and normalisers; a user's own subclass of those is one like the library's.

    Every subclass is a pytree: attributes that hold arrays, operands or terms are children, all others are static.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)

        def unflatten(aux: _Static, children: Iterable[Any]) -> Any:
            x = object.__new__(cls)
            for name, value in (*zip(aux[0], children, strict=True), *aux[1]):
                object.__setattr__(x, name, value)
            return x

        register_pytree_node(cls, _flatten, unflatten)

    def bound(self, b: Operand, h: Operand) -> Self:
        """The same term with the indices of batch elements `[b]` and of heads `[h]` filled in, where it uses them."""
        return self.changed(lambda value: bind(value, b, h))

    def changed(self, change: Callable[[Any], Any]) -> Self:
        """The same term with every attribute changed."""
        x = object.__new__(type(self))
        for name in _attributes(self):
            object.__setattr__(x, name, change(getattr(self, name)))
        return x


def _attributes(term: Term) -> tuple[str, ...]:
    if dataclasses.is_dataclass(term):
        return tuple(f.name for f in dataclasses.fields(term))
    return tuple(sorted(vars(term)))


_Static: TypeAlias = tuple[tuple[str, ...], tuple[tuple[str, Any], ...]]  # names of children; all else, by name


def _flatten(term: Term) -> tuple[list[Any], _Static]:
    names = _attributes(term)
    inner = tuple(n for n in names if _dynamic(getattr(term, n)))
    return [getattr(term, n) for n in inner], (inner, tuple((n, getattr(term, n)) for n in names if n not in inner))


def bind(value: T, b: Operand, h: Operand) -> T:
    """`Term.bound` of a term, of the terms in a tuple, or the value itself."""
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(bind(x, b, h) for x in value)  # type: ignore[return-value]
    return value.bound(b, h) if isinstance(value, Term) else value


def _dynamic(value: object) -> bool:
    if isinstance(value, tuple):
        return any(map(_dynamic, value))
    return isinstance(plain(value), (Operand, Term, jax.Array, np.ndarray, jax.ShapeDtypeStruct))


@dataclass_transform(frozen_default=True)
def term(cls: type[T]) -> type[T]:
    """Makes a term a frozen dataclass."""
    return dataclasses.dataclass(frozen=True)(cls)  # type: ignore[return-value]


@term
class Offsets(Term):
    """Where in longer sequences a call's own queries and keys stand.

    A call counts them from 0, as all that cuts tiles does.  Its terms see positions of the sequences.
    """

    lead: FieldValue = 0
    """How far the first query stands beyond the first key: all that matters to what looks at j - i alone."""
    first: FieldValue = 0
    """Where the first key stands."""

    def at(self, i: FieldValue, j: FieldValue) -> tuple[Any, Any]:
        """Positions of the sequences, from the call's own."""
        return _plus(_plus(i, self.lead), self.first), _plus(j, self.first)


def _plus(position: FieldValue, by: FieldValue) -> Any:
    return position if isinstance(by, int) and by == 0 else position + by


@term
class Terms(Term):
    """All that happens to one tile of one head between the two products, at the call's own positions i and j."""

    compare: Any  # compares two tiles; the backends look at which term it is
    mods: tuple[Mod, ...] = ()
    mask: Mask | None = None
    gates: tuple[Gate, ...] = ()
    offsets: Offsets = Offsets()

    def scores(
        self,
        query: jax.Array,
        key: jax.Array,
        i: jax.Array,
        j: jax.Array,
        masked: bool = True,
        fresh: bool | jax.Array = True,
    ) -> jax.Array:
        """Scores `[bt, bs]`, -inf where the mask forbids or the pair is not `fresh` (it belongs to another tile)."""
        return self.finish(self.compare(query, key), i, j, masked, fresh)

    def finish(
        self, score: jax.Array, i: jax.Array, j: jax.Array, masked: bool = True, fresh: bool | jax.Array = True
    ) -> jax.Array:
        """`scores` once query and key are compared."""
        live = fresh
        if masked and self.mask is not None:
            live = self.attends(i, j) & fresh
        score = modified(score, self.mods, *self.offsets.at(i, j), live)
        return score if live is True else jnp.where(live, score, -jnp.inf)

    def attends(self, i: jax.Array, j: jax.Array) -> jax.Array:
        """Where the mask, which there is, lets a pair attend."""
        assert self.mask is not None
        return self.mask(*self.offsets.at(i, j))

    def weights(
        self, weight: jax.Array, i: jax.Array, j: jax.Array, masked: bool = True, live: jax.Array | None = None
    ) -> jax.Array:
        """Weights after the gates.

        If `masked`, pairs that are not `live` have none, whatever a gate makes of them; where that is not known, those
        whose weight is 0: a softmax that gives 0 has no derivative there either.
        """
        i, j = self.offsets.at(i, j)
        hides = masked or any(mod.hides for mod in self.mods)
        if not hides or all(gate.finite for gate in self.gates):
            return self._gated(weight, i, j)
        live = weight != 0 if live is None else live
        return jnp.where(live, self._gated(weight, i, j, live), 0)

    def _gated(self, weight: jax.Array, i: jax.Array, j: jax.Array, live: bool | jax.Array = True) -> jax.Array:
        held = False
        for gate in self.gates:
            if live is not True and (held or not gate.finite):
                weight = _kept(weight, live, held)
            weight = _whole(gate(weight, i, j), weight)
            held = held or _holds(gate)
        return weight


def _kept(tile: jax.Array, live: bool | jax.Array, held: bool) -> jax.Array:
    """A tile whose derivative is 0 where pairs are hidden: log(i - j + 1) has none there.

    It is the same number there, which costs the forward nothing; but if a term may have made it NaN (`held`), then it
    is 0, for the derivatives of what the next term learns.
    """
    return jnp.where(live, tile, 0 if held else jax.lax.stop_gradient(tile))


def _holds(term: Mod | Gate) -> bool:
    """Whether a term may make NaN of a hidden pair: of its own, or because an operand is NaN there."""
    return not term.finite or bool(jax.tree.leaves(term))


def _whole(result: jax.Array, tile: jax.Array) -> jax.Array:
    """What a term makes of a tile, as large as it: what depends on i alone, say, is the same along a row."""
    return result if result.shape == tile.shape else jnp.broadcast_to(result, tile.shape)


def finite(mods: Iterable[Mod]) -> bool:
    """Whether a gradient of 0 stays 0 on its way back through mods, whatever stands in their operands.

    So it is where derivatives are finite, but for one that the score is part of (that of a soft cap), once an operand
    is part of the score: it may be NaN where a pair is hidden.
    """
    return not any(needs for _, needs, _ in _guarded(mods))


def _guarded(mods: Iterable[Mod]) -> Iterator[tuple[Mod, bool, bool]]:
    """Each mod, whether hidden pairs must be kept from it, and whether a mod before it may have made them NaN."""
    held = False
    for mod in mods:
        yield mod, not (mod.finite and (mod.affine or not held)), held
        held = held or _holds(mod)


def modified(
    score: jax.Array, mods: Iterable[Mod], i: jax.Array, j: jax.Array, live: bool | jax.Array = True
) -> jax.Array:
    """The score after the mods; nothing that they make of pairs that are not `live` has a derivative.

    One that is -inf is hidden: it stays so, and no mod after that sees it.  -inf times a temperature or under a soft
    cap would come back to life, and make the gradient of either NaN.
    """
    hides = False
    for mod, needs, held in _guarded(mods):
        keep = live is not True and needs
        if hides:
            shown = (score != -jnp.inf) & (live if keep else True)
            score = jnp.where(shown, mod(jnp.where(shown, score, 0), i, j), -jnp.inf)
        else:
            score = _whole(mod(_kept(score, live, held) if keep else score, i, j), score)
        hides = hides or mod.hides
    return score


class Signature(NamedTuple):
    """What is static about a term: its structure, and the axes of each of its operands."""

    tree: Any  # jax.tree_util.PyTreeDef, which is no type to type checkers
    axes: tuple[str, ...]

    def fill(self, values: Iterable[Any]) -> Any:
        """The term with `values` in the places of its operands."""
        return jax.tree.unflatten(self.tree, values)


def split(term: object) -> tuple[list[Any], Signature]:
    """Separates the arrays of a term (or of any pytree of terms) from its signature."""
    operands, tree = jax.tree.flatten(term, is_leaf=lambda x: isinstance(x, Operand))
    return [x.array for x in operands], Signature(tree, tuple(x.axes for x in operands))


def lift(fn: Callable, axes: tuple[str, ...], inputs: tuple[str, ...]) -> Callable:
    """Lifts `fn(*inputs, tiles)` of one head to batch elements, key heads and query heads a key head: `b g r`.

    `inputs` says which of "b", "g", "r" each input has, in front and in that order; `axes` the same of the operand
    tiles, whose `h` has been split in `g r`.
    """
    for axis, name in (("r", "h"), ("g", "h"), ("b", "b")):
        over = (*(0 if axis in x else None for x in inputs), [0 if name in a else None for a in axes])
        if any(o == 0 for o in jax.tree.leaves(over)):
            fn = jax.vmap(fn, in_axes=over)
    return fn
