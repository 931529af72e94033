"""Operands of terms in a TPU kernel: each tile reads the part that is its own, interpreted."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jattn_kernels.tiles.place import Place
from jattn_kernels.tiles.work import Frame
from jattn_kernels.tpu.layout import diagonal, lay_out
from jattn_kernels.tpu.sizes import TileSizes
from jax.experimental import pallas as pl

B, H, T, S = 2, 3, 200, 300
FRAME = Frame(T, S, TileSizes(128, 128, 128, 256))
LENGTHS = {"b": B, "h": H, "t": T, "s": S}
ROW, COLUMN = 128, 128


def _numbers(axes, dtype="float32"):
    shape = [LENGTHS[a] for a in axes]
    return jnp.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)


def _read(array, axes, transposed, b=1, h=2):
    """The part of the rectangle at row and column 128, of 64 rows and 128 keys, in the second chunk's place."""
    given, layout = lay_out(array, axes, FRAME)
    place = Place(b, h, 0, 64, 0, 128, ROW, COLUMN, transposed)
    held = given if layout.along == "" else given[layout.entry(b, h)]
    if "t" in layout.along:
        held = held[ROW:] if layout.along == "ts" else held[:, ROW:]
    if "s" in layout.along:
        held = held[:, COLUMN:]

    def kernel(x, out):
        out[...] = jnp.broadcast_to(layout.read(x, place, FRAME), out.shape).astype(out.dtype)

    sides = {"": (), "t": (64,), "s": (128,), "ts": (64, 128)}[layout.along]
    shape = sides if len(sides) == 2 else (1, *sides) if sides and (layout.along == "t") == transposed else (*sides, 1)
    dtype = bool if layout.boolean else jnp.float32 if held.dtype == jnp.bfloat16 else held.dtype
    return layout, pl.pallas_call(kernel, jax.ShapeDtypeStruct(shape if sides else (1, 1), dtype), interpret=True)(held)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("axes", ["", "b", "h", "bh", "t", "ht", "s", "bs"])
def test_a_tile_reads_its_own_part(axes, transposed):
    array = _numbers(axes)
    layout, got = _read(array, axes, transposed)
    assert (layout.batch, layout.heads) == (B if "b" in axes else 1, H if "h" in axes else 1)
    at = tuple({"b": 1, "h": 2, "t": slice(ROW, ROW + 64), "s": slice(COLUMN, COLUMN + 128)}[a] for a in axes)
    wanted = np.asarray(array)[at]
    if layout.along == "t":
        wanted = wanted[None] if transposed else wanted[:, None]
    if layout.along == "s":
        wanted = wanted[:, None] if transposed else wanted[None]
    np.testing.assert_array_equal(got.reshape(wanted.shape), wanted)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool", "int32"])
def test_pairs_are_read_as_a_tile(dtype):
    array = _numbers("ts", "int32") % 2 == 0 if dtype == "bool" else _numbers("ts", dtype)
    _, got = _read(array, "ts", False)
    wanted = np.asarray(array)[ROW : ROW + 64, COLUMN : COLUMN + 128]
    np.testing.assert_array_equal(np.asarray(got, wanted.dtype), wanted)


def test_vectors_are_stretched_to_what_tiles_divide_by_their_last_number():
    given, layout = lay_out(_numbers("bt"), "bt", FRAME)
    assert given.shape == (B, 1, 1, FRAME.padded["t"]) and layout.along == "t"
    np.testing.assert_array_equal(given[1, 0, 0, T:], given[1, 0, 0, T - 1])


@pytest.mark.parametrize(
    ("axes", "dtype", "held"),
    [
        ("t", "bfloat16", "float32"), ("ts", "bfloat16", "bfloat16"), ("s", "bool", "int32"), ("ts", "bool", "int8"),
        ("s", "uint8", "int32"), ("s", "uint32", "uint32"),
    ],
)  # fmt: skip
def test_numbers_are_held_in_dtypes_that_a_kernel_reads(axes, dtype, held):
    given, layout = lay_out(jnp.ones([LENGTHS[a] for a in axes], dtype), axes, FRAME)
    assert given.dtype == held and layout.boolean == (dtype == "bool")


def test_elements_beyond_those_of_an_operand_use_its_entries_again():
    _, layout = lay_out(_numbers("bh"), "bh", FRAME)
    assert layout.entry(5, 2) == (1, 2)
    _, shared = lay_out(_numbers("s"), "s", FRAME)
    assert shared.entry(5, 2) == (0, 0)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_strip_of_diagonals_begins_where_the_rectangle_does(transposed):
    """Its part is as long as both sides, and lies inside the strip for every rectangle of the call."""
    length = sum(FRAME.padded.values())
    for i in range(0, FRAME.padded["t"], 128):
        for j in range(0, FRAME.padded["s"], 128):
            first = diagonal(FRAME, Place(0, 0, 0, 128, 0, 128, i, j, transposed))
            assert 0 <= first <= length - 256 and first % 128 == 0
