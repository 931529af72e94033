"""Tile sizes: what the table says, and what wider rows leave of it."""

import jax
import jax.numpy as jnp
import pytest
from jattn_kernels.chips import TPUS

from jattn._call import targets
from jattn._call.problem import reduce
from jattn.backends.contract import Spec
from jattn.backends.pallas_tpu import PALLAS_TPU
from jattn.backends.pallas_tpu.sizes import tile_sizes
from tests.problems import problem


@pytest.mark.parametrize("chip", TPUS)
@pytest.mark.parametrize(("d", "dtype"), [(128, "bfloat16"), (256, "bfloat16"), (256, "float32"), (576, "float32")])
def test_rows_of_a_backward_tile_are_no_wider_than_those_that_were_tuned(chip, d, dtype):
    q, k, v = (jax.ShapeDtypeStruct((1, 4096, 2, d), dtype) for _ in range(3))
    *_, signature = reduce(problem((jnp.zeros(q.shape, q.dtype),) * 3, {}))

    def rows(direction, blocks=None):
        spec = Spec(PALLAS_TPU, signature, jnp.dtype(dtype), None, blocks, targets.named(chip))
        sizes, _ = tile_sizes(spec, q, k, v, direction)
        return sizes.query, sizes.key

    assert max(rows("backward")) * d * q.dtype.itemsize <= 2**20
    assert min(rows("backward")) >= 256
    assert rows("backward", (4096, 4096)) == (4096, 4096)  # as asked for
