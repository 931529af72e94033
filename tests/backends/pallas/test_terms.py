"""Terms as kernels take them: what a mask, a table and a scale become, and how their arrays are held."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jattn_kernels.gpu.sizes import Lengths
from jattn_kernels.tiles.functions import LOG2E

from jattn import gates, masks, mods, operand, scores
from jattn._call.problem import reduce
from jattn._call.targets import Target
from jattn._terms import Operand
from jattn.backends.blockwise import BLOCKWISE
from jattn.backends.contract import Spec
from jattn.backends.pallas.terms import (
    DiagonalBias,
    Packed,
    TileTerms,
    of_32_bits,
    of_rows_that_see,
    packed,
    parts_of,
    replaced,
    scales_scores,
    words_of,
)
from tests.problems import problem

X = np.ones((2, 8, 2, 4), np.float32)


def _spec(dtype="float32", **options):
    q, _, _, operands, signature = reduce(problem((X.astype(dtype),) * 3, options))
    return Spec(BLOCKWISE, signature, q.dtype, options.get("precision"), None, Target("tpu")), operands


def _terms(dtype="float32", **options):
    return TileTerms(_spec(dtype, **options)[0], Lengths(8, 8))


@pytest.mark.parametrize("columns", [1, 31, 32, 33, 70])
@pytest.mark.parametrize("lead", [(), (3,)])
def test_a_layout_is_packed_a_bit_for_each_block(columns, lead):
    layout = np.random.default_rng(0).random((*lead, 4, columns)) < 0.5
    mask = packed(masks.blocks(layout, 2))
    assert isinstance(mask, Packed)
    words = mask.bits.array
    assert words.array.dtype == np.int32 and words.block == 2
    assert words.array.size == words_of(layout)
    bits = np.unpackbits(words.array.view(np.uint8), axis=-1, bitorder="little")[..., :columns]
    np.testing.assert_array_equal(bits.reshape(layout.shape), layout)
    np.testing.assert_array_equal(words.of_heads([]), words.array)


def test_layouts_are_packed_where_positions_stay_as_they_are():
    one = masks.blocks(np.ones((2, 2), bool), 4)
    assert len(parts_of(packed(masks.causal() & ~(one | masks.prefix(3))), Packed)) == 1
    assert packed(None) is None
    assert packed(masks.causal()) == masks.causal()


def test_parts_are_found_and_replaced_however_deep():
    pair = (mods.softcap(3.0), masks.causal() & ~masks.dilated(2))
    assert parts_of(pair, masks.Dilated) == [masks.dilated(2)]
    got = replaced(pair, masks.Dilated, lambda x: masks.dilated(x.stride + 1))
    assert got == (mods.softcap(3.0), masks.causal() & ~masks.dilated(3))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("dtype", "narrow"),
    [("float64", "float32"), ("int64", "int32"), ("uint64", "uint32"), ("float32", "float32"), ("bfloat16", "bfloat16"), ("bool", "bool")],
)  # fmt: skip
def test_kernels_have_no_64_bits(dtype, narrow):
    for x in (jnp.ones(3, dtype), np.ones(3, dtype)):
        assert of_32_bits(x).dtype == narrow


def test_rows_that_see_nothing_are_0_whatever_they_hold():
    lse = jnp.array([[[0.0], [-jnp.inf]], [[1.0], [2.0]]])
    x = jnp.full((1, 2, 1, 3), jnp.nan).at[:, 0].set(5.0)
    got = of_rows_that_see(x, lse)  # of elements that share it
    assert got.shape == (2, 2, 1, 3)
    assert (got[:, 0] == 5).all() and not got[0, 1].any() and np.isnan(got[1, 1]).all()


@pytest.mark.parametrize(
    ("options", "scaled"),
    [
        ({}, False),
        ({"mods": mods.softcap(3.0)}, True),
        ({"score": scores.dot(jnp.float32(0.5))}, True),
        ({"precision": jax.lax.Precision.HIGHEST}, True),
        ({"mask": masks.causal(), "gates": gates.dropout(0.5, 0)}, False),
    ],
)
def test_a_scale_multiplies_scores_where_rounding_the_query_would_show(options, scaled):
    assert scales_scores(_spec(**options)[0]) == scaled


def test_the_factor_of_products_is_in_the_units_of_the_scores():
    assert _terms().factor == pytest.approx(0.5)  # of widths of 4, in natural logarithms
    assert _terms("bfloat16").factor == pytest.approx(0.5 * LOG2E)
    assert _terms("bfloat16", mods=mods.softcap(3.0)).factor == pytest.approx(0.5)
    learned = _terms(score=scores.dot(jnp.float32(0.5)))
    assert learned.scale == 1.0 and [x.axes for x in learned.slots] == [""]


def test_a_slot_for_each_array_and_which_of_them_learn():
    made = _terms(
        mods=(mods.alibi(np.ones(2)), mods.relative(np.ones((2, 8), np.float32))), mask=masks.segments(np.arange(8))
    )
    assert sorted(x.axes for x in made.slots) == ["h", "hr", "s", "t"]
    assert all(isinstance(x.array, int) for x in made.slots)
    learned = [x.axes == "hr" for x in made.slots]
    by_number = {x.array: y for x, y in zip(made.slots, learned, strict=True)}
    assert made.active([by_number[n] for n in range(4)]) == tuple(learned)
    assert not any(made.active([False] * 4))


def test_functions_are_those_of_the_terms():
    mask, tilt = masks.causal(), mods.function(lambda s, i, j, x: s + x * j, operand(np.float32(2.0)))
    made = _terms(mask=mask, mods=tilt, gates=gates.function(lambda w, i, j: w * (1 + i)))
    functions, i, j = made.functions(), jnp.arange(2)[:, None], jnp.arange(3)[None]
    parts = [jnp.float32(2.0)]
    got = functions.scores(jnp.ones((2, 3)), i, j, True, True, parts)
    np.testing.assert_array_equal(got, [[1, -np.inf, -np.inf], [1, 3, -np.inf]])
    assert functions.weights is not None
    np.testing.assert_array_equal(functions.weights(jnp.ones((2, 3)), i, j, False, parts), [[1] * 3, [2] * 3])
    assert (functions.reach, functions.blind, functions.natural) == ((0, 8), False, True)
    plain = _terms().functions()
    assert plain.weights is None and plain.scale is None and plain.sees is None


@pytest.mark.parametrize("lead", [0, 3])
def test_a_table_is_looked_up_along_diagonals(lead):
    table = np.arange(16, dtype=np.float32).reshape(2, 8)
    bucket = lambda r: r + 4
    spec, operands = _spec(mods=mods.relative(table, bucket), positions={"t": lead, "s": 0} if lead else None)
    made = TileTerms(spec, Lengths(8, 8))
    (slot,) = made.slots
    assert parts_of(jax.tree.unflatten(made.tree, made.slots), DiagonalBias)
    relative = jnp.arange(-7, 8)
    strip, axes = made.along_diagonals(slot, operands, relative)
    assert axes == "hr"
    np.testing.assert_array_equal(strip, table[:, np.clip(np.arange(-7, 8) - lead + 4, 0, 7)])


def test_where_each_element_stands_elsewhere_diagonals_are_looked_up_for_each():
    table, lead = np.arange(16, dtype=np.float32).reshape(2, 8), np.array([0, 3])
    spec, operands = _spec(mods=mods.relative(table, lambda r: r + 4), positions={"t": lead, "s": 0})
    made = TileTerms(spec, Lengths(8, 8))
    assert isinstance(made.lead, Operand) and made.lead.axes == "b"
    slot = next(x for x in made.slots if "r" in x.axes)
    strip, axes = made.along_diagonals(slot, operands, jnp.arange(-7, 8))
    assert axes == "bhr"
    at = np.clip(np.arange(-7, 8) - lead[:, None] + 4, 0, 7)
    np.testing.assert_array_equal(strip, table[:, at].swapaxes(0, 1))


def test_terms_of_the_same_call_are_one_program():
    one, other = (_spec(mods=mods.alibi(np.full(2, x)))[0] for x in (1.0, 2.0))
    assert one == other and dataclasses.replace(one, blocks=(8, 8)) != other
