"""Where in a call a rectangle of scores stands."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jattn_kernels.tiles.place import Place


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 5), (3, 1), (3, 5)])
def test_positions_lie_each_along_its_own_axis(rows, columns, transposed):
    place = Place(0, 0, 0, rows, 0, columns, 7, 20, transposed)
    i, j = place.positions()
    assert place.shape == ((columns, rows) if transposed else (rows, columns))
    assert np.broadcast_shapes(i.shape, j.shape) == place.shape
    assert i.dtype == j.dtype == jnp.int32
    np.testing.assert_array_equal(i.ravel(), 7 + np.arange(rows))
    np.testing.assert_array_equal(j.ravel(), 20 + np.arange(columns))


def test_a_place_may_be_known_at_run_time_alone():
    at = jax.jit(lambda i, j: Place(0, 0, 0, 2, 0, 3, i, j, False).positions())(jnp.int32(4), jnp.int32(-1))
    assert at[0].tolist() == [[4], [5]] and at[1].tolist() == [[-1, 0, 1]]
