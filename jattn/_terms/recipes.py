"""Recipes: how to make a value anew, with other arrays in the places of its own."""

from __future__ import annotations

import collections
import dataclasses
import functools
import types
from collections.abc import Sequence
from typing import Any, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np

Arrays = Sequence[Any]  # in the places of those that a function closes over: operands, or what became of them
_FILL = {dict: dict.update, list: list.extend, collections.deque: collections.deque.extend}
_ON_HEAP, _IMMUTABLE = 1 << 9, 1 << 8  # CPython's flags; a class statement makes classes with the first alone


class Recipe(Protocol):
    """How to make a value anew, hashable and without its arrays."""

    def build(self, arrays: Arrays) -> Any:
        """The value, with `arrays` in the places of its own."""
        ...


@dataclasses.dataclass(frozen=True)
class Constant:
    """A hashable value.  Its kind and its text keep 1, 1.0 and True apart, and 0.0 from -0.0."""

    value: Any
    kind: type
    text: str

    def build(self, arrays: Arrays) -> Any:
        del arrays
        return self.value


class Same:
    """A value that is equal to itself alone."""

    def __init__(self, value: object):
        self.value: Any = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # of a function's globals, say, a copy would be another module's

    def build(self, arrays: Arrays) -> Any:
        del arrays
        return self.value


@dataclasses.dataclass(frozen=True)
class Kept:
    """A value that is used as it is, and equal to itself while it holds the same: what it holds may be changed."""

    value: Any  # a `Constant` or `Same`
    holds: Any

    def build(self, arrays: Arrays) -> Any:
        return self.value.build(arrays)


@dataclasses.dataclass(frozen=True)
class Namespace:
    """A module or a class in which names that code mentions stand for arrays."""

    value: Same
    named: tuple[tuple[str, Any], ...]

    def build(self, arrays: Arrays) -> Any:
        named = {name: x.build(arrays) for name, x in self.named}
        if isinstance(self.value.value, type):
            return type(self.value.value.__name__, (self.value.value,), named)
        made = types.ModuleType(self.value.value.__name__)
        made.__dict__.update({**vars(self.value.value), **named})
        return made


@dataclasses.dataclass(frozen=True)
class NumberedArray:
    """The array of that number."""

    number: int

    def build(self, arrays: Arrays) -> Any:
        return arrays[self.number]


@dataclasses.dataclass(frozen=True)
class KnownArray:
    """A NumPy array that is known while tracing, compared by its contents."""

    shape: tuple[int, ...]
    dtype: np.dtype  # and not its text, which says of bfloat16 no more than that it has two bytes
    contents: bytes

    def build(self, arrays: Arrays) -> Any:
        del arrays
        return jnp.asarray(np.frombuffer(self.contents, self.dtype).reshape(self.shape))


@dataclasses.dataclass(frozen=True)
class Container:
    """A container: any pytree."""

    structure: Any
    leaves: tuple[Any, ...]

    def build(self, arrays: Arrays) -> Any:
        return jax.tree.unflatten(self.structure, [x.build(arrays) for x in self.leaves])


@dataclasses.dataclass(frozen=True)
class Instance:
    """An object by its attributes, and by what it contains where its class is one of containers."""

    kind: type
    attributes: tuple[tuple[str, Any], ...]
    contents: Any = None

    def build(self, arrays: Arrays) -> Any:
        base = builtin_base(self.kind)
        contents = () if self.contents is None else self.contents.build(arrays)
        made = tuple.__new__(self.kind, contents) if base is tuple else base.__new__(self.kind)
        if base in _FILL:
            _FILL[base](made, contents)
        for name, x in self.attributes:
            object.__setattr__(made, name, x.build(arrays))
        return made


@dataclasses.dataclass(frozen=True)
class BoundMethod:
    """A method of an object."""

    function: Any
    owner: Any

    def build(self, arrays: Arrays) -> Any:
        return types.MethodType(self.function.build(arrays), self.owner.build(arrays))


@dataclasses.dataclass(frozen=True)
class Partial:
    """A function that has some of its arguments."""

    function: Any
    arguments: Any
    keywords: Any

    def build(self, arrays: Arrays) -> Any:
        return functools.partial(
            self.function.build(arrays), *self.arguments.build(arrays), **self.keywords.build(arrays)
        )


@dataclasses.dataclass(frozen=True)
class PythonFunction:
    """A Python function as its code and the values that the code reaches."""

    code: types.CodeType
    module: Same  # the globals of its module, by identity: what the code names of them is read into `named`
    name: str
    defaults: Any
    keyword_defaults: Any
    cells: tuple[Any, ...]
    named: tuple[tuple[str, Any], ...]  # the globals that its code names

    def build(self, arrays: Arrays) -> Any:
        held = {**self.module.value, **{name: x.build(arrays) for name, x in self.named}}
        cells = tuple(types.CellType(x.build(arrays)) for x in self.cells)
        made = types.FunctionType(self.code, held, self.name, self.defaults.build(arrays), cells)
        made.__kwdefaults__ = self.keyword_defaults.build(arrays)
        return made


def builtin_base(kind: type) -> Any:
    """The class that Python itself defines of which a class is one: it says what its objects are beside attributes."""
    return next(x for x in kind.__mro__ if x.__flags__ & (_ON_HEAP | _IMMUTABLE) != _ON_HEAP)


def arrays_in(recipe: object) -> bool:
    """Whether a recipe, or a tuple of recipes, has places for arrays."""
    if isinstance(recipe, (Container, Instance, BoundMethod, Partial, PythonFunction, Namespace)):
        return any(arrays_in(getattr(recipe, f.name)) for f in dataclasses.fields(recipe))
    return isinstance(recipe, NumberedArray) or (isinstance(recipe, tuple) and any(map(arrays_in, recipe)))
