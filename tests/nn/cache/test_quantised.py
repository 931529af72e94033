"""Numbers of few bits: what rounding may take from them, and what it leaves as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import masks
from jattn.nn import MultiHeadAttention
from jattn.nn.cache._quantised import quantised
from tests.layers import normal
from tests.tolerances import TOLERANCES, assert_close

# of the greatest number of a row, and of each number itself
BOUNDS = {
    "int8": (0.5 / 127, 0.0),
    "float8_e4m3fn": (2.0**-10 / 448, 2.0**-4),
    "float8_e5m2": (2.0**-17 / 57344, 2.0**-3),
}


@pytest.mark.parametrize("dtype", BOUNDS)
def test_what_is_read_is_near_what_was_written(dtype):
    x = np.asarray(normal((50, 3, 16))) * 10.0 ** np.linspace(-6, 4, 50)[:, None, None]
    number, scale = quantised(jnp.asarray(x, jnp.float32), dtype)
    assert number.dtype == dtype
    of_row, of_each = BOUNDS[dtype]
    read = np.asarray(number.astype(jnp.float32)) * np.asarray(scale)[..., None]
    greatest = abs(x).max(-1, keepdims=True)
    assert (abs(read - x) <= (of_row * greatest + of_each * abs(x)) * (1 + 1e-5)).all()


@pytest.mark.parametrize("dtype", BOUNDS)
def test_what_has_a_place_stays(dtype):
    most = 127 if dtype == "int8" else 7
    x = np.random.default_rng(0).integers(-most, most + 1, (9, 8)).astype(np.float32)
    x[:, 0] = most
    x[3] = 0
    number, scale = quantised(jnp.asarray(x), dtype)
    assert_close(number.astype(jnp.float32) * scale[:, None], x, TOLERANCES["float32"].value)
    assert scale[3] == 1
    bad, poisoned = quantised(jnp.array([[jnp.nan, 1.0], [2.0, 1.0]]), dtype)
    assert jnp.isnan(bad.astype(jnp.float32) * poisoned[:, None]).all(-1).tolist() == [True, False]


def test_scores_and_outputs_are_as_far_as_their_keys_and_values():
    """With weights that all are equal, the output differs by what the values do, at most."""
    layer = MultiHeadAttention(16, 4, mask=masks.causal(), rngs=nnx.Rngs(0))
    layer.query.kernel[...] = jnp.zeros_like(layer.query.kernel[...])
    layer.out.kernel[...] = jnp.eye(16).reshape(4, 4, 16)
    x = normal((2, 6, 16), dtype=jnp.float32)
    out, cache = layer.decode(x, layer.cache(6, 2, "int8"))
    assert cache.value_scale is not None
    bound = jnp.repeat(cache.value_scale.max(1), 4, axis=-1)[:, None] / 2
    assert (abs(out - layer(x)) <= bound * (1 + 1e-4) + 1e-6).all()
    assert not jax.tree.all(jax.tree.map(lambda x, y: (x == y).all(), out, layer(x)))
