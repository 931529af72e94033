"""Numbers of rows, along lanes in the call's order of rows."""

import jax.numpy as jnp
import numpy as np
import pytest
from jattn_kernels.tpu.decode.fold import Fold
from jattn_kernels.tpu.decode.turned import along_lanes
from jattn_kernels.tpu.sizes import LANES


@pytest.mark.parametrize(("t", "h", "g"), [(1, 8, 2), (3, 6, 3), (5, 32, 4), (2, 4, 4)])
@pytest.mark.parametrize("turned", [False, True])
def test_numbers_of_rows_stand_along_lanes_in_the_order_of_the_call(t, h, g, turned):
    fold = Fold(t, LANES, h, g, LANES, LANES, turned=turned)
    wanted = np.arange(1, t * h + 1, dtype=np.float32)
    wanted[::3] = -np.inf
    rows = wanted.reshape(t, g, h // g).swapaxes(1, 2).reshape(-1) if turned else wanted
    rows = np.pad(rows, (0, fold.rows - t * h), constant_values=np.nan)
    got = along_lanes(jnp.asarray(np.repeat(rows[:, None], LANES, axis=1)), fold)
    np.testing.assert_array_equal(got[0, : t * h], wanted)
