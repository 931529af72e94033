"""Operands of folded heads: numbers of keys over columns, and how arrays with any axes are laid out."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from jattn_kernels.tpu.decode.fold import Fold, fold_of
from jattn_kernels.tpu.decode.operands import key_scales, lay_out, spread_over_columns
from jattn_kernels.tpu.sizes import LANES

random = np.random.default_rng(0)


@pytest.mark.parametrize("g", [1, 2, 3, 8])
def test_each_number_of_a_key_stands_in_the_columns_of_all_key_heads(g):
    x = random.standard_normal((3, 2 * LANES)).astype(np.float32)
    np.testing.assert_array_equal(spread_over_columns(jnp.asarray(x), g), np.repeat(x, g, axis=1))


@pytest.mark.parametrize(("h", "g"), [(8, 2), (6, 3), (4, 4)])
def test_scales_are_those_of_a_row_and_a_key_where_both_have_one_key_head(h, g):
    fold = Fold(2, LANES, h, g, LANES, LANES, turned=True)
    x = random.standard_normal((g, LANES)).astype(np.float32)
    got = np.asarray(key_scales(jnp.asarray(x), fold))
    assert got.shape == (fold.rows, LANES * g)
    for row in range(2 * h):
        head = row % g
        np.testing.assert_array_equal(got[row, head::g], x[head])


@pytest.mark.parametrize("axes", ["".join(x) for n in range(5) for x in itertools.combinations("bhts", n)])
@pytest.mark.parametrize("scaled", [False, True])
def test_rows_are_in_the_order_of_the_fold(axes, scaled):
    sizes = {"b": 2, "h": 6, "t": 3, "s": 5}
    fold = fold_of(3, 5, 6, 2, 2048, True, scaled)
    x = random.standard_normal([sizes[a] for a in axes]).astype(np.float32)
    array, layout = lay_out(jnp.asarray(x), axes, fold)
    whole = np.broadcast_to(x.reshape([sizes[a] if a in axes else 1 for a in "bhts"]), [sizes[a] for a in "bhts"])
    rows = np.moveaxis(whole, 1, 2).reshape(2, 3, 2, 3, 5)  # b, t, g, h / g, s
    rows = (np.swapaxes(rows, 2, 3) if fold.turned else rows).reshape(2, 18, 5)
    assert layout.batch == (2 if "b" in axes else 1)
    if layout.along == "rows":
        np.testing.assert_array_equal(array[:, :18, 0], rows[: layout.batch, :, 0])
    elif layout.along == "keys":
        np.testing.assert_array_equal(array[:, : min(18, layout.n)], rows[: layout.batch, : layout.n])
    else:
        np.testing.assert_array_equal(array, whole[: layout.batch, 0, 0, 0])
