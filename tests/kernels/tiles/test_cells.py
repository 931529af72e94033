"""Masks as bits: each pair finds that of its cell, wherever its rectangle begins."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jattn_kernels.tiles.cells import Cells
from jattn_kernels.tiles.place import Place
from jax.experimental import pallas as pl

HEADS, ROWS, COLUMNS = 2, 6, 70


def _layout(side):
    """Booleans of cells, and their words, in a line as scalar memory has them."""
    bits = np.random.default_rng(side).random((HEADS, ROWS, COLUMNS)) < 0.5
    padded = np.pad(bits, ((0, 0), (0, 0), (0, -COLUMNS % 32)))
    words = np.packbits(padded, axis=-1, bitorder="little").view("<i4").astype(np.int32)
    return bits, jnp.asarray(words.ravel()), Cells(side, ROWS, words.shape[-1])


def _read(cells, words, h, place, query=0, key=0):
    """The bits of a rectangle, looked up inside a kernel that is interpreted."""

    def kernel(words, out):
        found = cells.read(words, h, place, jnp.transpose, query, key)
        out[...] = jnp.broadcast_to(found, out.shape)

    return pl.pallas_call(kernel, jax.ShapeDtypeStruct(place.shape, bool), interpret=True)(words)


@pytest.mark.parametrize("side", [1, 3, 4, 48, 128])
def test_a_stretch_meets_as_many_cells_as_it_may(side):
    cells = Cells(side, 1, 1)
    for length in (1, 2, side, side + 1, 3 * side):
        most = max((start + length - 1) // side - start // side + 1 for start in range(side))
        assert cells.spanned(length) == most


@pytest.mark.parametrize("side", [1, 3, 7, 32, 100])
def test_the_cell_of_a_position_is_its_quotient(side):
    at = jnp.arange(0, 2**20, 37, dtype=jnp.int32)
    np.testing.assert_array_equal(Cells(side, 1, 1).within(at), np.asarray(at) // side)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("side", "rows", "columns"), [(4, 8, 16), (3, 7, 40), (1, 5, 33), (1, 6, 70), (16, 20, 1)])
def test_each_pair_gets_the_bit_of_its_cell(side, rows, columns, transposed):
    bits, words, cells = _layout(side)
    for head in range(HEADS):
        last = side * ROWS - rows, side * COLUMNS - columns
        for i, j in ((0, 0), (last[0] // 2, min(5, last[1])), last):
            place = Place(0, head, 0, rows, 0, columns, i, j, transposed)
            got = _read(cells, words, head, place)
            at = np.arange(i, i + rows)[:, None] // side, np.arange(j, j + columns)[None] // side
            wanted = bits[head][at]
            np.testing.assert_array_equal(got, wanted.T if transposed else wanted)


def test_queries_and_keys_may_count_from_elsewhere():
    bits, words, cells = _layout(4)
    place = Place(0, 1, 0, 3, 0, 5, 2, 1, False)
    got = _read(cells, words, 1, place, 6, 40)
    np.testing.assert_array_equal(got, bits[1][np.arange(8, 11)[:, None] // 4, np.arange(41, 46)[None] // 4])
