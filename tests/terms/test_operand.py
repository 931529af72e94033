"""Arrays that say which axes of a call they have: how they are made, in which dtype they take part, what is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import masks
from jattn._terms import Operand
from jattn._terms.operand import as_array, broadcast_operand, indices, number, operand, plain, repeated, wide, working

SIZES = {"b": 2, "h": 4, "t": 3, "s": 5}


@pytest.mark.parametrize("axes", ["", "b", "bh", "hs", "bts", "bhts"])
def test_axes_are_those_in_front(axes):
    array = np.ones([SIZES[a] for a in axes] + [7])
    made = operand(array, axes)
    assert made.axes == axes and made.array is array
    leaves, tree = jax.tree.flatten(made)
    assert len(leaves) == 1
    assert jax.tree.unflatten(tree, ["anything"]) == Operand("anything", axes)


@pytest.mark.parametrize("axes", ["sb", "bb", "x", "B", 3, None])
def test_axes_that_there_are_not_or_out_of_order_are_refused(axes):
    with pytest.raises(ValueError, match=r'axes must name a subset of "bhts" in that order, got'):
        operand(np.ones((2, 2)), axes)


def test_numbers_beyond_32_bits_are_refused_where_x64_is_off():
    for wrong in (np.array([0, 2**31]), np.array([-(2**31) - 1]), np.array([2**40], ">i8"), [2**40]):
        with pytest.raises(ValueError, match=r"^ids holds integers that int32 cannot .* x64 is off"):
            as_array(wrong, "ids")
    with pytest.raises(ValueError, match="uint32"):
        as_array(np.array([2**32], np.uint64), "ids")
    with jax.enable_x64(True):
        assert as_array(np.array([2**40]), "ids").tolist() == [2**40]


@pytest.mark.parametrize("x", [np.zeros(0, np.int64), np.array([2**31 - 1, -(2**31)]), np.uint32(2**32 - 1)])
def test_numbers_of_32_bits_are_taken_whatever_holds_them(x):
    np.testing.assert_array_equal(as_array(x, "ids"), x)


def test_bytes_in_the_other_order_are_turned():
    got = as_array(np.array([1, 2], ">i4"), "ids")
    assert got.dtype.isnative and got.tolist() == [1, 2]


@pytest.mark.parametrize("x", ["text", object(), None])
def test_what_is_no_array_is_named(x):
    with pytest.raises(TypeError, match=rf"^table must be an array, got {type(x).__name__}$"):
        as_array(x, "table")


def test_what_holds_an_array_stands_for_it():
    held = jnp.ones(2)
    for x in (nnx.Param(held), nnx.Variable(held), Holder(held)):
        assert plain(x) is held is as_array(x, "table")
    for x in (held, np.ones(2), Holder, nnx.Param, "text", None):
        assert plain(x) is x
    assert isinstance(number(nnx.Variable(2.5), "cap"), float)
    jax.jit(lambda x: as_array(x, "table"))(held)  # a traced array has the attribute, which is None


class Holder:
    def __init__(self, held: jax.Array):
        self.held = held

    def __jax_array__(self):
        return self.held


def test_arrays_are_equal_where_they_are_one():
    """Else equality of masks would be an array, of which Python asks whether it is true."""
    array, traced = np.ones(2), []
    assert operand(array, "b") == operand(array, "b") != operand(array, "h")
    assert operand(array, "b") != operand(array.copy(), "b") and operand(array, "b") != array.tolist()
    assert masks.lengths(array.astype(int)) != masks.lengths(jnp.arange(2))
    jax.jit(lambda x: traced.append(masks.lengths(x) == masks.lengths(x + 1)))(jnp.arange(2))
    assert traced == [False]
    with pytest.raises(TypeError, match="unhashable"):
        hash(operand(array, "b"))


# Axes of length 1 are axes along which nothing varies


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((), ""),
        ((5,), "s"),
        ((3, 1), "t"),
        ((4, 1, 5), "hs"),
        ((2, 1, 1, 5), "bs"),
        ((1, 1, 1, 1), ""),
        ((2, 4, 3, 5), "bhts"),
    ],
)
def test_an_array_has_the_axes_along_which_it_varies(shape, axes):
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    got = broadcast_operand(array, SIZES, "bias")
    assert got.axes == axes
    assert got.array.shape == tuple(SIZES[a] for a in axes)
    full = np.broadcast_to(array, [SIZES[a] for a in "bhts"])
    kept = full[tuple(slice(None) if a in axes else 0 for a in "bhts")]
    np.testing.assert_array_equal(got.array, kept)


@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 3, 5), (1, 2, 4, 3, 5)])
def test_an_array_of_other_sizes_is_refused(shape):
    with pytest.raises(ValueError, match=r"^bias must be broadcastable to \[b, h, t, s\] = \[2, 4, 3, 5\], got shape"):
        broadcast_operand(np.ones(shape), SIZES, "bias")


def test_a_padding_mask_is_told_where_its_axes_go():
    with pytest.raises(ValueError, match=r"mask\[:, None, None, :\] where \[b, s\] says which keys are real"):
        broadcast_operand(np.ones((2, 5), bool), SIZES, "mask")


def test_rows_of_a_share_may_have_all_keys():
    """Where a device has a share of the keys, what varies along queries is made for all of them."""
    assert broadcast_operand(np.ones((3, 10)), SIZES, "bias", shares=2).array.shape == (3, 10)
    assert broadcast_operand(np.ones((1, 5)), SIZES, "bias", shares=2).axes == "s"
    with pytest.raises(ValueError, match=r"= \[2, 4, 3, 10\]"):
        broadcast_operand(np.ones((3, 5)), SIZES, "bias", shares=2)


# Dtypes


@pytest.mark.parametrize(
    ("own", "query", "taken"),
    [
        ("bfloat16", "bfloat16", "float32"),
        ("float32", "bfloat16", "float32"),
        ("float64", "bfloat16", "float32"),
        ("float64", "float32", "float32"),
        ("float64", "float64", "float64"),
        ("float16", "float64", "float32"),
        ("float8_e4m3fn", "float16", "float32"),
        ("int32", "bfloat16", "int32"),
        ("bool", "float64", "bool"),
    ],
)
def test_an_operand_takes_part_in_float32_or_wider_and_no_wider_than_its_query(own, query, taken):
    assert working(jax.ShapeDtypeStruct((2,), own), query) == taken


@pytest.mark.parametrize(
    ("dtype", "wider"), [("bfloat16", "float32"), ("float16", "float32"), ("float32", "float32"), ("int8", "int8")]
)
def test_floating_point_numbers_are_widened(dtype, wider):
    got = wide(jnp.arange(3).astype(dtype))
    assert got.dtype == wider and got.tolist() == [0, 1, 2]


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("n", [0, 1, 3])
def test_entries_are_repeated_as_numpy_does(n, axis):
    x = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(repeated(jnp.asarray(x), n, axis), np.repeat(x, n, axis))


@pytest.mark.parametrize("n", [0, 1, 4])
def test_indices_count_from_where_a_call_begins(n):
    here = indices(n, "h")
    assert isinstance(here.array, np.ndarray) and here.array.dtype == np.int32
    np.testing.assert_array_equal(here.array, np.arange(n))
    np.testing.assert_array_equal(indices(n, "h", 3).array, np.arange(3, 3 + n))
    later = indices(n, "h", Operand(jnp.int32(5), ""))
    assert isinstance(later.array, jax.Array) and later.axes == "h"
    np.testing.assert_array_equal(later.array, np.arange(5, 5 + n))


def test_a_number_of_python_is_static_and_an_array_is_not():
    assert number(2, "cap") == 2 and number(2.5, "cap") == 2.5
    of_numpy = number(np.float32(2.5), "cap")
    assert type(of_numpy) is float and of_numpy == 2.5
    held = number(jnp.float32(2.5), "cap")
    assert isinstance(held, Operand) and held.axes == ""


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        (True, TypeError, "a number or a scalar array, got True"),
        (np.True_, TypeError, "a number or a scalar array"),
        ("2", TypeError, "a number or a scalar array, got '2'"),
        (1j, TypeError, "a number or a scalar array"),
        (np.complex64(1), TypeError, "a real number"),
        (np.ones(1), ValueError, r"a scalar, got shape \(1,\)"),
    ],
)
def test_what_is_no_number_is_named(wrong, error, words):
    with pytest.raises(error, match=rf"^cap must be {words}"):
        number(wrong, "cap")
