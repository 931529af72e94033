"""Pictures of caches: the cells of each example, pages by their colour, and who holds them."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jattn
from jattn import masks
from jattn.viz import show_cache

X = jnp.ones((3, 9, 8))


def image(axes):
    return np.asarray(axes.images[0].get_array())


def test_pages_that_are_shared_have_one_colour():
    layer = jattn.nn.MultiHeadAttention(8, 2, mask=masks.causal(), rngs=nnx.Rngs(0))
    cache = layer.decode(X, layer.cache(12, 3, page=4), lengths=jnp.array([9, 2, 0]))[1]
    figure = show_cache(jattn.nn.cache.fork(cache, 0, 2), names=["a", "b", "c"], title="three")
    rows, pool = (image(axes) for axes in figure.axes)
    np.testing.assert_array_equal(rows[0], rows[2])
    assert not (rows[0, 0] == rows[1, 0]).all()
    assert (rows[0, 9:] == rows[1, 2]).all()  # nothing is there
    assert [x.get_text() for x in figure.axes[1].texts] == ["x2"] * 3
    assert "5 of 9 are free" in figure.axes[1].get_xlabel()
    assert (pool[0, 4:] == rows[1, 2]).all()
    figure.draw_without_rendering()


def test_a_window_that_slides_shows_positions():
    layer = jattn.nn.MultiHeadAttention(8, 2, mask=masks.causal() & masks.window(2), rngs=nnx.Rngs(0))
    cache = layer.decode(X, layer.cache(20, 3, slack=3))[1]
    figure = show_cache(cache)
    assert [x.get_text() for x in figure.axes[0].texts[:2]] == ["7", "8"]
    assert len(figure.axes[0].texts) == 3 * 2
    figure.draw_without_rendering()


def test_errors():
    layer = jattn.nn.MultiHeadAttention(8, 2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="one batch axis or none"):
        show_cache(layer.cache(4, (2, 3)))
    with pytest.raises(ValueError, match="names must be 2"):
        show_cache(layer.cache(4, 2), names=["a"])
