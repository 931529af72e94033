"""Terms: pure functions of one tile of scores, its positions, and operands that say which axes they have.

A mask, a mod, a gate and a score are each a small frozen dataclass.  Fields that hold arrays (as `Operand`s) are pytree
leaves and get gradients; everything else is static.  A backend cuts the operands to its tile and puts the pieces back
into the dataclass: the term then computes on plain arrays and never learns what a tile is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_pytree_node

AXES = "bhts"
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Operand:
    """An array and the names of its leading axes: a subset of `b h t s`, in that order.

    Axes of the array beyond the named ones are handed to the term whole.
    """

    array: Any
    axes: str


register_pytree_node(Operand, lambda x: ((x.array,), x.axes), lambda axes, children: Operand(children[0], axes))


def operand(array: Any, axes: str = "") -> Operand:
    """Names the axes of an array that a mask, mod or gate takes.

    `axes` is a subset of `"bhts"` in that order: `b` batch, `h` query head, `t` query position, `s` key position.  The
    term gets it cut to its tile and broadcastable to `[bt, bs]`: `[bt, 1]` for `"t"`, `[1, bs]` for `"s"`, `[]` where
    it has neither.  Further axes of the array follow, whole: a table `[h, buckets]` named `"h"` arrives as `[buckets]`.

    >>> import jax.numpy as jnp, jattn
    >>> tilt = jattn.mods.function(lambda score, i, j, slope: score - slope * (i - j), jattn.operand(jnp.ones(2), "h"))
    >>> q = jnp.ones((1, 3, 2, 4))
    >>> jattn.attention(q, q, q, mods=(tilt,)).shape
    (1, 3, 2, 4)

    Raises ValueError where `axes` is not such a subset or the array has fewer axes.
    """
    if not isinstance(axes, str) or "".join(a for a in AXES if a in axes) != axes:
        raise ValueError(f'axes must name a subset of "bhts" in that order, got {axes!r}')
    array = as_array(array, "an operand")
    if array.ndim < len(axes):
        raise ValueError(f"an operand with axes {axes!r} needs {len(axes)} or more axes, got shape {array.shape}")
    return Operand(array, axes)


def as_array(x: Any, name: str) -> Any:
    """`x` as an array.  Raises where JAX would wrap its integers around, as ids of 64 bits where x64 is off."""
    if not isinstance(x, (jax.Array, np.ndarray)):
        try:
            x = np.asarray(x) if isinstance(x, (list, tuple, bool, int, float, np.generic)) else jnp.asarray(x)
        except (TypeError, ValueError):
            raise TypeError(f"{name} must be an array, got {type(x).__name__}") from None
    if isinstance(x, np.ndarray) and jnp.issubdtype(x.dtype, jnp.integer) and x.size:
        kept = jnp.iinfo(jax.dtypes.canonicalize_dtype(x.dtype))
        if x.min() < kept.min or x.max() > kept.max:
            raise ValueError(
                f"{name} holds integers that {kept.dtype} cannot (from {x.min()} to {x.max()}), and x64 is off:"
                " renumber them, or turn on jax_enable_x64"
            )
    return x


def indices(n: int, axis: str) -> Operand:
    """0, 1, .. along an axis, for terms that depend on which batch element or head they are of."""
    return Operand(np.arange(n, dtype=np.int32), axis)


def broadcast_operand(array: Any, sizes: dict[str, int], name: str) -> Operand:
    """An array broadcastable to `[b, h, t, s]` as an operand that has only the axes along which it varies."""
    array = as_array(array, name)
    full = tuple(sizes[a] for a in AXES)
    shape = (1,) * (4 - array.ndim) + array.shape
    if array.ndim > 4 or any(n not in (1, want) for n, want in zip(shape, full, strict=True)):
        raise ValueError(
            f"{name} must be broadcastable to [b, h, t, s] = {list(full)}, got shape {list(array.shape)};"
            f" give missing axes size 1{_padding_hint(array.shape, sizes, name)}"
        )
    axes = "".join(a for a, n in zip(AXES, shape, strict=True) if n != 1)
    return Operand(array.reshape([n for n in shape if n != 1]), axes)


def _padding_hint(shape: tuple[int, ...], sizes: dict[str, int], name: str) -> str:
    padding = shape == (sizes["b"], sizes["s"])
    return f": {name}[:, None, None, :] where [b, s] says which keys are real" if padding else ""


def working(array: Any, dtype: Any) -> Any:
    """The dtype in which an operand takes part where queries are of `dtype`: float32 or wider, but never wider than
    what the query is computed in."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return array.dtype
    own, computed = (jnp.promote_types(x, jnp.float32) for x in (array.dtype, dtype))
    return computed if jnp.dtype(own).itemsize > jnp.dtype(computed).itemsize else own


def wide(array: Any) -> Any:
    """Floating operands reach a term in float32 or wider: positions times a bfloat16 slope would skip integers."""
    array = jnp.asarray(array)
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    return array.astype(jnp.promote_types(array.dtype, jnp.float32)) if floating else array


def number(value: Any, name: str) -> Any:
    """A Python number stays static; an array becomes an operand without axes, and gets a gradient."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.number, np.ndarray, jax.Array)):
        raise TypeError(f"{name} must be a number or a scalar array, got {value!r}")
    if isinstance(value, (np.ndarray, jax.Array)):
        if value.ndim:
            raise ValueError(f"{name} must be a scalar, got shape {value.shape}")
        return Operand(value, "")
    return value if isinstance(value, (int, float)) else value.item()


class Term:
    """Base of masks, mods, gates, scores and normalisers; a user's own subclass of those is one like the library's.

    Every subclass is a pytree: attributes that hold arrays, operands or terms are children, all others are static.
    """

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)

        def unflatten(aux, children):
            x = object.__new__(cls)
            for name, value in (*zip(aux[0], children, strict=True), *aux[1]):
                object.__setattr__(x, name, value)
            return x

        register_pytree_node(cls, _flatten, unflatten)

    def bound(self, b: int, h: int) -> Term:
        """The same term with the indices of batch elements and heads filled in as operands, where it uses them."""
        return self.changed(lambda value: bind(value, b, h))

    def changed(self, change: Callable[[Any], Any]) -> Term:
        """The same term with every attribute changed."""
        x = object.__new__(type(self))
        for name in _attributes(self):
            object.__setattr__(x, name, change(getattr(self, name)))
        return x


def _attributes(term: Any) -> tuple[str, ...]:
    if dataclasses.is_dataclass(term):
        return tuple(f.name for f in dataclasses.fields(term))
    return tuple(sorted(vars(term)))


def _flatten(term: Any) -> Any:
    names = _attributes(term)
    inner = tuple(n for n in names if _dynamic(getattr(term, n)))
    return [getattr(term, n) for n in inner], (inner, tuple((n, getattr(term, n)) for n in names if n not in inner))


def bind(value: Any, b: int, h: int) -> Any:
    """`Term.bound` of a term, of the terms in a tuple, or the value itself."""
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(bind(x, b, h) for x in value)
    return value.bound(b, h) if isinstance(value, Term) else value


def _dynamic(value: Any) -> bool:
    if isinstance(value, tuple):
        return any(map(_dynamic, value))
    return isinstance(value, (Operand, Term, jax.Array, np.ndarray, jax.ShapeDtypeStruct))


@dataclass_transform(frozen_default=True)
def piece(cls: type[T]) -> type[T]:
    """Makes a term a frozen dataclass."""
    return dataclasses.dataclass(frozen=True)(cls)  # type: ignore[return-value]


@piece
class Terms(Term):
    """All that happens to one tile of one head between the two products."""

    compare: Term
    mods: tuple[Term, ...] = ()
    mask: Term | None = None
    gates: tuple[Term, ...] = ()

    def scores(self, query: Any, key: Any, i: Any, j: Any, masked: bool = True, fresh: Any = True) -> Any:
        """Scores `[bt, bs]`, -inf where the mask forbids or the pair is not `fresh` (it belongs to another tile)."""
        return self.finish(self.compare(query, key), i, j, masked, fresh)  # type: ignore[operator]

    def finish(self, score: Any, i: Any, j: Any, masked: bool = True, fresh: Any = True) -> Any:
        """`scores` once query and key are compared."""
        score = modified(score, self.mods, i, j)
        live = fresh
        if masked and self.mask is not None:
            live = self.mask(i, j) & fresh  # type: ignore[operator]
        return score if live is True else jnp.where(live, score, -jnp.inf)

    def weights(self, weight: Any, i: Any, j: Any) -> Any:
        """Weights after the gates."""
        for gate in self.gates:
            weight = gate(weight, i, j)  # type: ignore[operator]
        return weight


def modified(score: Any, mods: Any, i: Any, j: Any) -> Any:
    """The score after the mods.  One that is -inf is hidden: it stays so, and no mod after that sees it.

    -inf times a temperature or under a soft cap would come back to life, and make the gradient of either NaN.
    """
    hides = False
    for mod in mods:
        if hides:
            live = score != -jnp.inf
            score = jnp.where(live, mod(jnp.where(live, score, 0), i, j), -jnp.inf)
        else:
            score = mod(score, i, j)
        hides = hides or mod.hides
    return score


class Signature(NamedTuple):
    """What is static about a term: its structure, and the axes of each of its operands."""

    tree: Any
    axes: tuple[str, ...]

    def fill(self, values: Any) -> Any:
        """The term with `values` in the places of its operands."""
        return jax.tree.unflatten(self.tree, values)


def split(term: Any) -> tuple[list[Any], Signature]:
    """Separates the arrays of a term (or of any pytree of terms) from its signature."""
    found, tree = jax.tree.flatten(term, is_leaf=lambda x: isinstance(x, Operand))
    return [x.array for x in found], Signature(tree, tuple(x.axes for x in found))


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
