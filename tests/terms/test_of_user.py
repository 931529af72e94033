"""Functions that a user writes: which arguments they may take, what they are told, and what they return of a tile."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn import masks, mods, normalizers, operand
from jattn._terms import split
from jattn._terms.of_user import OfUser, function_parts
from tests.bad_input import check_named

RELATIVE: Any = mods.relative  # whose types would refuse what is wrong on purpose

BAD = {
    "four arguments": (lambda: mods.function(lambda score, h, i, j: score), TypeError,
                       ["(score, h, i, j)", "(score, i, j)", "(score, b, h, i, j)", "3 or 5 in all"]),
    "mask of three arguments": (lambda: masks.function(lambda h, i, j: i >= j), TypeError, ["(i, j)", "(b, h, i, j)"]),
    "normaliser of two arguments": (lambda: normalizers.function(lambda s, i: s), TypeError, ["(scores)", "0 operands"]),
    "bucket of two": (lambda: RELATIVE(np.ones((4, 3)), lambda r, x: r), TypeError, ["mods.relative: bucket", "(j - i)"]),
}  # fmt: skip


@pytest.mark.smoke
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    check_named(BAD[name])


SCORES: Any = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
TILE: dict[str, Any] = {"i": np.arange(3)[:, None], "j": np.arange(5)[None]}
SHORT, LONG = "i, j", "b, h, i, j"


@pytest.mark.parametrize(
    ("fn", "form"),
    [
        (lambda i, j, n: i, SHORT),
        (lambda b, h, i, j, n: i, LONG),
        (lambda *x: x[0], SHORT),  # of those that it can be called with, the first
        (lambda i, j, n, scale=1.0: i, SHORT),
        (lambda b, h, i, j=0, n=0: i, SHORT),
        (lambda i, j, n, *, scale=1.0: i, SHORT),
        (max, SHORT),  # built in, which does not tell
    ],
)
def test_the_first_form_with_as_many_arguments_and_operands_is_taken(fn, form):
    got, _, operands, held = function_parts("a term", fn, [np.float32(2)], SHORT, LONG)
    assert got == form
    assert [x.axes for x in operands] == [""] and held == ()


@pytest.mark.parametrize("fn", [lambda i: i, lambda i, j, n, m: i, lambda i, j, n, *, m: i])
def test_a_function_of_no_such_form_is_told_all_of_them(fn):
    with pytest.raises(
        TypeError, match=r"a term: .*<lambda>\(i.* must take \(i, j\) or \(b, h, i, j\) .* 1 operands, 3 or 5 in all"
    ):
        function_parts("a term", fn, [1.0], SHORT, LONG)


@pytest.mark.parametrize("fn", [None, 3.0, "causal", np.ones(3)])
def test_what_is_no_function_is_named(fn):
    with pytest.raises(TypeError, match="a term: fn must be callable, got "):
        function_parts("a term", fn, [], SHORT)


def test_an_operand_keeps_the_axes_that_it_was_given():
    given = operand(np.ones((2, 3), np.float32), "bt")
    *_, operands, _ = function_parts("a term", lambda i, j, x, y: i, [given, np.float32(3)], SHORT)
    assert operands[0] is given
    assert operands[1].axes == "" and operands[1].array == 3


def filled(made: OfUser) -> OfUser:
    """The term as a tile has it: arrays in the places of its operands."""
    arrays, signature = split(made)
    return signature.fill(arrays)


def test_a_result_is_that_of_the_tile_the_positions_and_the_operands():
    slope = jnp.float32(0.5)  # closed over, and so held
    made = OfUser.of("mods.function", lambda s, i, j, x: s * x - slope * (i - j), [np.float32(3)], "score")
    assert made.told is None and len(made.held) == 1
    made = jax.tree.map(lambda x: 2 * x, made)
    np.testing.assert_allclose(filled(made).result(SCORES, **TILE), SCORES * 6 - (TILE["i"] - TILE["j"]), 1e-6)


@pytest.mark.parametrize(("tile", "held"), [("", 0), ("score", 1)])
def test_a_table_stays_with_a_function_of_positions_alone(tile, held):
    """So that a mask is known while tracing; a mod's table gets gradients."""
    table = np.arange(3.0, dtype=np.float32)
    fn = (lambda i, j: table[i]) if not tile else (lambda score, i, j: score + table[i])
    made = OfUser.of("a term", fn, [], tile)
    assert len(made.held) == held
    got = filled(made).result(*[SCORES][: len(tile)], **TILE)
    np.testing.assert_allclose(got, TILE["i"] + (SCORES if tile else np.zeros((3, 1))), 1e-6)


def test_a_function_is_told_of_which_batch_element_and_head_the_tile_is():
    made = OfUser.of("a term", lambda b, h, i, j, x: 100 * b + 10 * h + x + 0 * i, [np.int32(7)], "")
    assert made.told == "bh"
    np.testing.assert_array_equal(
        filled(made).result(**TILE), np.full((3, 1), 7)
    )  # the first of both, unless it is bound
    at = made.bound(operand(np.int32(3), ""), operand(np.int32(4), ""))
    np.testing.assert_array_equal(filled(at).result(**TILE), np.full((3, 1), 347))
    assert at.bound(operand(np.int32(5), ""), operand(np.int32(6), "")).b.array == 5


@pytest.mark.parametrize(
    ("told", "wanted"), [(None, (None, None)), ("", (None, None)), ("b", (1, None)), ("h", (None, 2))]
)
def test_only_what_a_function_makes_use_of_is_bound(told, wanted):
    made = OfUser.of("a term", lambda b, h, i, j: i, [], "")
    bound = dataclasses.replace(made, told=told).bound(operand(np.int32(1), ""), operand(np.int32(2), ""))
    assert tuple(x and int(x.array) for x in (bound.b, bound.h)) == wanted
