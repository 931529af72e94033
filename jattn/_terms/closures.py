"""What a user's function closes over: arrays become operands, all else becomes part of a key.

A function given to a mask, a mod or a gate runs later, inside a loop or a kernel, where the traced values of now are
gone and gradients cannot reach them.  So the arrays that it uses are taken out when the term is made, and put back, as
what an operand has become by then, when the function is called.  They are looked for where Python keeps them: in the
cells of its closure, in defaults, in the globals that its code names, in `functools.partial` and bound methods, in
containers and plain objects, and so on in the functions that it uses.

What is left is static and hashable, and equal for functions made anew from the same code and values: a lambda written
inside a training loop does not compile again.
"""

from __future__ import annotations

import collections
import dataclasses
import dis
import functools
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jattn._terms import AnyArray, Operand, as_array, recipes
from jattn._terms.recipes import Arrays, Recipe, arrays_in, builtin_base

_LIBRARIES = {"jax", "jaxlib", "numpy", "scipy", "flax", "optax", "jattn", "builtins", "math", "functools", "operator"}
_CONTENTS = {dict: lambda x: dict(dict.items(x)), list: list, tuple: tuple, collections.deque: list}
_GLOBALS, _ATTRIBUTES = ("LOAD_GLOBAL", "LOAD_NAME"), ("LOAD_ATTR", "LOAD_METHOD")
_CHANGES = {
    list: {"append", "extend", "insert", "[]"},
    collections.deque: {"append", "extend", "appendleft", "[]"},
    dict: {"update", "setdefault", "[]"},
    set: {"add", "update"},
}
"""What code does to a container that it keeps a record in; `[]`: it writes an entry."""
_PLAIN = (bool, int, float, complex, str, bytes, type(None), np.generic, np.dtype)
_LEAF = jax.tree.structure(0)
_STATIC_TABLE = 2**16  # entries of a NumPy array that a mask keeps: more would make the program's key slow to compare


class _CircularError(Exception):
    """A value reaches itself: a recursive function, or an object that holds its owner."""


class _Reader:
    """Reads values, collecting the arrays in them."""

    def __init__(self, tables: bool):
        self.arrays: list[Any] = []
        # from the id of an array met before to its place in `arrays`: met again, it is the same operand
        self.numbers: dict[int, int] = {}
        self.path: list[int] = []  # ids of the values that are being read
        self.mentioned: frozenset[str] = frozenset()  # attributes that the code being read asks for, and `_writes`
        self.tables = tables

    def read(self, value: object) -> Recipe:
        if isinstance(value, (jax.Array, np.ndarray)) and not isinstance(value, np.generic):
            return self._array(value)
        if isinstance(value, _PLAIN):
            return recipes.Constant(value, type(value), repr(value))
        if id(value) in self.path:
            raise _CircularError
        self.path.append(id(value))
        try:
            return self._composite(value)
        finally:
            self.path.pop()

    def _array(self, value: AnyArray) -> Recipe:
        value = as_array(value, "an array that a function closes over")
        if self.tables and isinstance(value, np.ndarray) and value.size <= _STATIC_TABLE and value.dtype != object:
            return recipes.KnownArray(value.shape, value.dtype, value.tobytes())
        number = self.numbers.setdefault(id(value), len(self.arrays))
        if number == len(self.arrays):
            self.arrays.append(value)
        return recipes.NumberedArray(number)

    def _composite(self, value: object) -> Recipe:
        if _of_library(value) and jax.tree.structure(value) == _LEAF:  # layers and their parameters are no leaves
            return self._namespace(value) if isinstance(value, (types.ModuleType, type)) else _whole(value)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, functools.partial):
            return recipes.Partial(self.read(value.func), self.read(value.args), self._parts(value.keywords))
        if isinstance(value, types.MethodType):
            return recipes.BoundMethod(self.read(value.__func__), self.read(value.__self__))
        if callable(value) and isinstance(getattr(value, "__wrapped__", None), types.FunctionType):
            inner = self.read(
                value.__wrapped__
            )  # of jax.jit and its like: elementwise functions need no jit of their own
            return inner if arrays_in(inner) else _whole(value)
        recipe = self._parts(value)
        if isinstance(value, tuple) or arrays_in(recipe):
            return recipe
        # What holds no array is used as it is, so that a list that a function appends to stays that list.  What the
        # function writes itself is a record of its calls, and no part of what it computes.
        if _CHANGES.get(builtin_base(type(value)), set()) & self.mentioned:
            return _whole(value)
        if isinstance(recipe, recipes.Instance):
            others = tuple(x for x in recipe.attributes if f".{x[0]}" not in self.mentioned)
            recipe = dataclasses.replace(recipe, attributes=others)
        return _kept(value, recipe)

    def _namespace(self, value: types.ModuleType | type) -> Recipe:
        """A user's module or class, by what the code that is being read may ask it for."""
        module = value.__name__ if isinstance(value, types.ModuleType) else value.__module__
        if module.partition(".")[0] in _LIBRARIES | sys.stdlib_module_names:
            return _whole(value)
        try:
            held = {name: x for name, x in vars(value).items() if name in self.mentioned and not _is_descriptor(x)}
            named = tuple((name, self.read(held[name])) for name in sorted(held))
        except _CircularError:  # its functions call each other
            return _whole(value)
        return recipes.Namespace(recipes.Same(value), named) if arrays_in(named) else _kept(value, named)

    def _parts(self, value: object) -> Recipe:
        """A container or an object, taken apart."""
        leaves, structure = jax.tree.flatten(value)
        if structure != _LEAF and _hashable(structure):
            return recipes.Container(structure, tuple(self.read(x) for x in leaves))
        base, attributes = builtin_base(type(value)), _attributes(value)
        if base in _CONTENTS:
            attributes, contents = attributes or {}, self.read(_CONTENTS[base](value))
        elif attributes is None or base not in (object, types.SimpleNamespace):
            return _whole(value)
        else:
            contents = None
        return recipes.Instance(type(value), tuple((name, self.read(x)) for name, x in attributes.items()), contents)

    def _function(self, fn: types.FunctionType) -> Recipe:
        before, self.mentioned = (
            self.mentioned,
            self.mentioned | _names(fn.__code__, _ATTRIBUTES) | _writes(fn.__code__),
        )
        try:
            return self._code(fn)
        finally:
            self.mentioned = before

    def _code(self, fn: types.FunctionType) -> Recipe:
        cells = tuple(self.read(x.cell_contents) for x in fn.__closure__ or ())
        named = []
        for name in sorted(_names(fn.__code__, _GLOBALS)):
            if name in fn.__globals__:
                named.append((name, self.read(fn.__globals__[name])))
        # a dictionary of keywords is made with its function, and no two functions share it: it is what it holds
        defaults, keywords = self.read(fn.__defaults__), self._parts(fn.__kwdefaults__ or {})
        return recipes.PythonFunction(
            fn.__code__, recipes.Same(fn.__globals__), fn.__name__, defaults, keywords, cells, tuple(named)
        )


@functools.lru_cache(maxsize=1024)
def _names(code: types.CodeType, operations: tuple[str, ...]) -> frozenset[str]:
    """Names that such operations of a function's code, and of the functions inside it, load."""
    own = {x.argval for x in dis.get_instructions(code) if x.opname in operations}
    return frozenset(own).union(*(_names(x, operations) for x in code.co_consts if isinstance(x, types.CodeType)))


@functools.lru_cache(maxsize=1024)
def _writes(code: types.CodeType) -> frozenset[str]:
    """What a function's code and the functions inside it write: `[]` for entries, `.name` for attributes."""
    own = {f".{x.argval}" for x in dis.get_instructions(code) if x.opname == "STORE_ATTR"}
    own |= {"[]" for x in dis.get_instructions(code) if x.opname == "STORE_SUBSCR"}
    return frozenset(own).union(*(_writes(x) for x in code.co_consts if isinstance(x, types.CodeType)))


def _is_descriptor(value: object) -> bool:
    """Whether a class's entry makes its value when it is asked: properties, static and class methods."""
    return hasattr(type(value), "__get__") and not isinstance(value, types.FunctionType)


def _of_library(value: object) -> bool:
    """Modules, classes, and what well-known libraries define: nothing of a user's hides in them."""
    if isinstance(value, (types.ModuleType, type, types.BuiltinFunctionType, np.ufunc)):
        return True
    if isinstance(value, (functools.partial, types.MethodType)):
        return False
    module = getattr(value, "__module__", None) if callable(value) else type(value).__module__
    return callable(value) and str(module).partition(".")[0] in _LIBRARIES and not getattr(value, "__closure__", None)


def _attributes(value: object) -> dict[str, Any] | None:
    """The attributes of an object by name, those in slots too; None where it can have none, so that it is taken
    whole."""
    slots = [_mangled(name, kind) for kind in type(value).__mro__ for name in _names_of(kind)]
    held = getattr(value, "__dict__", None)
    if not isinstance(held, dict) and not slots:
        return None
    own = (name for name in slots if name not in ("__dict__", "__weakref__"))
    of_slots = {name: getattr(value, name) for name in own if hasattr(value, name)}
    return {**(held if isinstance(held, dict) else {}), **of_slots}


def _names_of(kind: type) -> tuple[str, ...]:
    slots: str | Iterable[str] = kind.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _mangled(name: str, kind: type) -> str:
    """What Python makes of a private name in a class."""
    private = name.startswith("__") and not name.endswith("__")
    return f"_{kind.__name__.lstrip('_')}{name}" if private else name


def _hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _whole(value: object) -> Recipe:
    return recipes.Constant(value, type(value), "") if _hashable(value) else recipes.Same(value)


def _kept(value: object, holds: object) -> Recipe:
    return recipes.Kept(_whole(value), holds)


@dataclasses.dataclass(frozen=True)
class Closure:
    """A function without its arrays: static, hashable, and equal to those of functions that do the same."""

    recipe: Recipe
    name: str
    unused: tuple[Any, ...] = ()
    """Of each array None, or shape and dtype where no result depends on it: such arrays are not held."""

    def build(self, held: Arrays) -> Callable:
        """The function, with `held` in the places of its arrays."""
        given: Iterator[Any] = iter(held)
        arrays = [next(given) if x is None else jnp.zeros(*x) for x in self.unused] if self.unused else held
        return self.recipe.build(arrays)

    def without(self, held: Sequence[Operand], used: Sequence[bool]) -> tuple[Closure, tuple[Operand, ...]]:
        """The function and its arrays without those that are not `used`."""
        unused = tuple(None if y else (x.array.shape, x.array.dtype) for x, y in zip(held, used, strict=True))
        return dataclasses.replace(self, unused=unused), tuple(x for x, y in zip(held, used, strict=True) if y)


def hoist(fn: Callable, tables: bool = False) -> tuple[Closure, tuple[Operand, ...]]:
    """The function without the arrays that it closes over, and those arrays as operands without axes.

    `tables`: NumPy arrays of moderate size stay with the function, so that it is still known while tracing.
    """
    reader = _Reader(tables)
    name = getattr(fn, "__qualname__", None) or getattr(fn, "__name__", None) or type(fn).__name__
    try:
        recipe = reader.read(fn)
    except (_CircularError, ValueError):  # ValueError: a cell that is still empty
        return Closure(_whole(fn), name), ()
    return Closure(recipe, name), tuple(Operand(x, "") for x in reader.arrays)
