"""Recipes make values anew, with other arrays in the places of their own, and are equal where those alone differ."""

from __future__ import annotations

import collections
import copy
import enum
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import masks, mods
from jattn._terms import recipes
from jattn._terms.closures import hoist
from jattn._terms.recipes import Constant, NumberedArray, Same, arrays_in, builtin_base
from tests.tolerances import assert_close

SIZES = (2, 8, 2, 4)
Q, K, V = (np.random.default_rng(n).standard_normal(SIZES).astype(np.float32) for n in range(3))
TABLE = np.random.default_rng(3).standard_normal(7).astype(np.float32)


@pytest.mark.parametrize("dtype", ["bfloat16", "int4", ">f4", ">i4"])
def test_numpy_tables_of_any_dtype(dtype):
    table = np.arange(8).astype(jnp.dtype(dtype) if dtype[0] != ">" else dtype)
    got = jattn.attention(Q, K, V, mask=masks.function(lambda i, j: table[j] < 3))
    assert_close(got, jattn.attention(Q, K, V, mask=masks.lengths(3)), 1e-6)


def test_functions_can_be_copied_deeply():
    for x in (masks.function(lambda i, j: j <= i), mods.function(lambda s, i, j: s + TABLE[0])):
        assert jax.tree.structure(copy.deepcopy(x)) == jax.tree.structure(x)


def number(x):
    return Constant(x, type(x), repr(x))


@pytest.mark.parametrize("others", [(1, 1.0, True), (0.0, -0.0), (np.int32(2), np.int64(2), 2)])
def test_equal_numbers_of_other_kinds_are_other_constants(others):
    assert len({number(x) for x in others}) == len(others)
    assert all(number(x).build([]) is x and number(x) == number(x) for x in others)


def test_the_same_is_equal_to_itself_alone_and_no_copy_of_it():
    held = {"a": 1}
    assert Same(held) == Same(held) and hash(Same(held)) == hash(Same(held))
    assert Same(held) != Same({"a": 1})
    assert Same(held) != held
    assert copy.deepcopy(Same(held)).build([]) is held


def test_what_is_kept_is_used_as_it_is_and_equal_while_it_holds_the_same():
    held = [1]
    kept = lambda: recipes.Kept(Same(held), tuple(map(number, held)))
    first = kept()
    assert first == kept() and first.build([]) is held
    held.append(2)
    assert first != kept()


class _Named(str):
    pass


class _Counts(collections.Counter):
    pass


class _Plain:
    def __init__(self, **attributes):
        self.__dict__.update(attributes)


class _Slots:
    __slots__ = ("x",)


class _Settings(dict):
    pass


class _Row(tuple):
    pass


class _Rows(list):
    pass


class _Turns(collections.deque):
    pass


class _Choice(enum.Enum):
    ONE = 1


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        (_Plain, object), (_Slots, object), (_Settings, dict), (_Row, tuple), (_Rows, list), (_Turns, collections.deque),
        (_Named, str), (_Counts, dict), (_Choice, object), (int, int), (types.SimpleNamespace, types.SimpleNamespace),
        (type("Failure", (ValueError,), {}), ValueError), (collections.namedtuple("Pair", "x y"), tuple),
    ],
)  # fmt: skip
def test_the_builtin_class_of_which_a_class_is_one(kind, base):
    assert builtin_base(kind) is base


def contents_of(x):
    return dict(x) if isinstance(x, dict) else list(x)


@pytest.mark.parametrize(
    ("kind", "contents"), [(_Settings, {"a": 5, "b": 7}), (_Row, (5, 7)), (_Rows, [5, 7]), (_Turns, [5, 7])]
)
def test_an_object_is_made_anew_with_its_attributes_and_what_it_contains(kind, contents):
    leaves, tree = jax.tree.flatten(contents)
    of = recipes.Container(tree, (NumberedArray(1), number(leaves[1])))
    made = recipes.Instance(kind, (("name", number("it")), ("by", NumberedArray(0))), of).build([3.0, 9])
    assert type(made) is kind
    assert (made.name, made.by) == ("it", 3.0)
    assert contents_of(made) == contents_of(jax.tree.unflatten(tree, [9, 7]))


def test_an_object_is_made_anew_without_its_class_being_called():
    class Once:
        __slots__ = ("x",)

        def __init__(self):
            raise AssertionError("it is made already")

        def __setattr__(self, name, value):
            raise AttributeError("it is frozen")

    made = recipes.Instance(Once, (("x", NumberedArray(0)),)).build([4])
    assert type(made) is Once and made.x == 4


def test_methods_and_partials_get_their_arrays():
    class Scaled:
        def of(self, x, *, by=1):
            return self.scale * x * by  # pyright: ignore[reportAttributeAccessIssue]

    owner = recipes.Instance(Scaled, (("scale", NumberedArray(0)),))
    method = recipes.BoundMethod(Same(Scaled.of), owner)
    assert method.build([3])(2) == 6
    keywords = recipes.Container(jax.tree.structure({"by": 0}), (NumberedArray(1),))
    arguments = recipes.Container(jax.tree.structure((0,)), (number(2),))
    partial = recipes.Partial(method, arguments, keywords).build([3, 5])
    assert isinstance(partial, functools.partial) and partial() == 30


def test_a_module_and_a_class_are_stood_for_by_others_that_hold_the_arrays():
    module = types.ModuleType("settings")
    module.__dict__.update(x=1.0, y=2.0)

    class Settings:
        x, y = 1.0, 2.0

    for value in (module, Settings):
        made = recipes.Namespace(Same(value), (("x", NumberedArray(0)),)).build([5.0])
        assert (made.x, made.y, made.__name__) == (5.0, 2.0, value.__name__)
        assert value.x == 1.0  # pyright: ignore[reportAttributeAccessIssue]
    assert issubclass(recipes.Namespace(Same(Settings), ()).build([]), Settings)


def test_a_function_gets_arrays_in_cells_defaults_and_globals():
    cell = 2.0

    def fn(a, b=3.0, *, c=4.0):
        return a, b, c, cell, TABLE

    nothing = recipes.Container(jax.tree.structure({}), ())
    recipe = recipes.PythonFunction(
        fn.__code__, Same(fn.__globals__), "fn", recipes.Container(jax.tree.structure((0,)), (NumberedArray(0),)),
        recipes.Container(jax.tree.structure({"c": 0}), (NumberedArray(1),)), (NumberedArray(2),), (("TABLE", NumberedArray(3)),),
    )  # fmt: skip
    made = recipe.build([30, 40, 20, 50])
    assert made(1) == (1, 30, 40, 20, 50)
    assert made(1, 2, c=3)[:3] == (1, 2, 3)
    assert fn(1)[1:4] == (3.0, 4.0, 2.0)
    assert arrays_in(recipe) and not arrays_in(nothing)


PLACES = {
    "a cell": lambda x: lambda: x,
    "a default": lambda x: lambda y=x: y,
    "a keyword's default": lambda x: lambda *, y=x: y,
    "a list": lambda x: (lambda y: lambda: y[0])([x]),
    "a partial": lambda x: functools.partial(lambda y: y, x),
    "a helper": lambda x: (lambda f: lambda: f())(lambda: x),
}


@pytest.mark.parametrize("place", PLACES)
def test_what_is_read_is_built_with_other_arrays(place):
    closure, held = hoist(PLACES[place](jnp.arange(3.0)))
    assert arrays_in(closure.recipe) and len(held) == 1
    np.testing.assert_array_equal(closure.build([np.full(3, 7.0)])(), np.full(3, 7.0))
    assert not arrays_in(hoist(PLACES[place](3.0))[0].recipe)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int4", "bool"])
def test_a_known_array_is_compared_by_its_contents_and_its_dtype(dtype):
    table = np.array([[0, 1, 1], [1, 0, 1]]).astype(jnp.dtype(dtype))
    of = lambda x: recipes.KnownArray(x.shape, x.dtype, x.tobytes())
    assert of(table) == of(table.copy()) and hash(of(table)) == hash(of(table.copy()))
    assert of(table) != of(table.reshape(3, 2))
    assert of(table) != of(table[::-1].copy())
    got = of(table).build([])
    assert got.dtype == table.dtype
    np.testing.assert_array_equal(got, table)
    assert not arrays_in(of(table))
