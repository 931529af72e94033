"""Which part of each array a step works on, and how parts are put back."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.backends.blockwise import BLOCKWISE
from jattn.backends.blockwise.sizes import Limits
from jattn.backends.steps import Step, split
from tests.cases import make
from tests.evaluate import assert_agree, evaluate
from tests.tolerances import assert_close


@functools.lru_cache(maxsize=8)
def _wanted(name):
    return evaluate(make(name, jnp.float64), "reference")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("step", [20, 90])
def test_steps_over_batch_and_heads(step):
    """Small shapes fit one step: with a smaller step the walk over batch elements and heads is what large ones take."""
    backend = dataclasses.replace(BLOCKWISE, settings=Limits(step=step))
    for name in ("everything", "nested"):
        got = evaluate(make(name, jnp.float64), backend, (4, 5))
        assert_agree(got, _wanted(name), "float64")
        assert_close(got.slope, got.slope_from_gradients, 1e-11, "forward mode")


B, T, S, H, G, D = 4, 6, 5, 4, 2, 3
LENGTHS = {"b": B, "t": T, "s": S, "h": H, "g": G}
AT = {"b": (2, 2), "g": (1, 1), "h": (2, 2), "t": (3, 2), "s": (1, 4)}
STEP = Step(AT, H // G)
WHOLE = Step({axis: (0, n) for axis, n in LENGTHS.items()}, H // G)


def _numbers(axes, *rest, b=B):
    shape = [b if a == "b" else LENGTHS[a] for a in axes] + list(rest)
    return jnp.arange(np.prod(shape, dtype=int), dtype=jnp.float32).reshape(shape)


def _slices(axes):
    return tuple(slice(AT[a][0], sum(AT[a])) for a in axes)


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("n", [0, 1, 6, 20])
def test_an_index_is_split_as_by_divmod(n, size):
    assert split(n, size) == divmod(n, size)
    assert [int(x) for x in jax.jit(lambda n: split(n, size))(n)] == [*divmod(n, size)]


@pytest.mark.parametrize("axes", ["bth", "bsg", "bhts", "hs", "t", "b"])
def test_a_part_is_cut_and_put_back(axes):
    x = _numbers(axes, D)
    part = STEP.part(x, axes)
    np.testing.assert_array_equal(part, x[_slices(axes)])
    for add in (False, True):
        got, wanted = STEP.put(x, axes, part + 1, add), np.array(x)
        wanted[_slices(axes)] = part + 1 + (x[_slices(axes)] if add else 0)
        np.testing.assert_array_equal(got, wanted)
    traced = jax.jit(lambda n: STEP.along("t", n, 2).part(x, axes))(3)
    np.testing.assert_array_equal(traced, part)


def test_what_is_whole_is_replaced_in_its_dtype():
    x = _numbers("bth", D).astype(jnp.bfloat16)
    got = WHOLE.put(x, "bth", jnp.ones(x.shape))
    assert got.dtype == jnp.bfloat16 and (got == 1).all()


def test_elements_that_share_an_entry_read_it_and_add_to_it():
    shared = _numbers("bs", b=2)
    part = STEP.part(shared, "bs")  # elements 2 and 3, which use entries 0 and 1
    np.testing.assert_array_equal(part, shared[:, 1:5])
    one = _numbers("bs", b=1)
    np.testing.assert_array_equal(STEP.part(one, "bs"), np.repeat(one[:, 1:5], 2, 0))
    added = STEP.put(jnp.zeros_like(one), "bs", jnp.ones((2, 4)), add=True)
    np.testing.assert_array_equal(added, [[0, 2, 2, 2, 2]])


def test_tiles_have_heads_in_front():
    q, k = _numbers("bth", D), _numbers("bsg", D)
    rows, columns = STEP.rows(q), STEP.columns(k)
    assert rows.shape == (2, 1, 2, 2, D) and columns.shape == (2, 1, 4, D)
    for r in range(2):
        np.testing.assert_array_equal(rows[:, 0, r], q[2:4, 3:5, 2 + r])
    np.testing.assert_array_equal(columns[:, 0], k[2:4, 1:5, 1])
    np.testing.assert_array_equal(STEP.put_rows(q, rows), q)
    np.testing.assert_array_equal(STEP.put_columns(k, columns), k)
    np.testing.assert_array_equal(STEP.put_columns(jnp.zeros_like(k), columns, True)[_slices("bsg")], k[_slices("bsg")])


def test_positions_are_those_of_the_rows_and_columns():
    i, j = STEP.positions()
    np.testing.assert_array_equal(i, [[3], [4]])
    np.testing.assert_array_equal(j, [[1, 2, 3, 4]])


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        ("", ()),
        ("b", (2,)),
        ("h", (1, 2)),
        ("s", (1, 4)),
        ("ht", (1, 2, 2, 1)),
        ("bhts", (2, 1, 2, 2, 4)),
        ("bt", (2, 2, 1)),
    ],
)
def test_an_operand_is_broadcastable_to_its_tile(axes, shape):
    x = _numbers(axes, D)
    tile = STEP.operand(x, axes)
    assert tile.shape == (*shape, D)
    np.testing.assert_array_equal(np.ravel(tile), np.ravel(x[_slices(axes)]))
    twice = STEP.put_operand(STEP.put_operand(jnp.zeros_like(x), axes, tile), axes, tile)
    wanted = np.zeros_like(x)
    wanted[_slices(axes)] = 2 * x[_slices(axes)]
    np.testing.assert_array_equal(twice, wanted)


def test_an_operand_of_few_bits_is_read_in_float32():
    assert STEP.operand(_numbers("s").astype(jnp.bfloat16), "s").dtype == jnp.float32
