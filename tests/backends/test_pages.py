"""What a step cuts of keys that lie in pages is what it would cut of them in a row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn._call.pages import in_a_row
from jattn.backends.pages import Paged
from jattn.backends.steps import KEY, Step
from tests.evaluate import equations

POOL, PAGE, G, D = 9, 4, 2, 3
KEYS = jnp.arange(POOL * PAGE * G * D, dtype=jnp.float32).reshape(POOL, PAGE, G, D)
TABLE = jnp.array([[6, 2, 4, 0], [2, 8, 99, 1]])  # a page of both, and one that there is not
WHOLE = in_a_row(KEYS, TABLE)


def test_is_described_as_keys_in_a_row():
    keys = Paged(KEYS, TABLE, aligned=False)
    assert (keys.shape, keys.ndim, keys.dtype) == (WHOLE.shape, WHOLE.ndim, WHOLE.dtype)


@pytest.mark.parametrize("size", [1, 3, 4, 5, 8, 16])
def test_rows_from_anywhere_in_a_page(size):
    cut = jax.jit(lambda start: Paged(KEYS, TABLE, aligned=False).cut((0, start, 0, 0), (2, size, G, D)))
    for start in range(4 * PAGE - size + 1):
        np.testing.assert_array_equal(cut(jnp.int32(start)), WHOLE[:, start : start + size])


@pytest.mark.parametrize("pages", [1, 2, 4])
def test_whole_pages(pages):
    size = pages * PAGE
    for start in range(0, 4 * PAGE, size):
        got = Paged(KEYS, TABLE, aligned=True).cut((0, jnp.int32(start), 0, 0), (2, size, G, D))
        np.testing.assert_array_equal(got, WHOLE[:, start : start + size])


def test_a_step_of_some_examples_and_heads():
    at = {"b": (1, 1), "g": (1, 1), "h": (1, 1), "t": (0, 1), "s": (6, 5)}
    for array in (WHOLE, Paged(KEYS, TABLE, aligned=False)):
        np.testing.assert_array_equal(Step(at, 1).part(array, KEY), WHOLE[1:, 6:11, 1:])
        np.testing.assert_array_equal(Step(at, 1).columns(array), WHOLE[1:, 6:11, 1:].swapaxes(1, 2))


@pytest.mark.parametrize(("aligned", "size", "pages"), [(True, 8, 2), (False, 8, 3), (False, 1, 1), (False, 16, 4)])
def test_copies_the_pages_that_rows_may_touch_and_no_more(aligned, size, pages):
    cut = lambda start: Paged(KEYS, TABLE, aligned).cut((0, start, 0, 0), (2, size, G, D))
    (taken,) = equations(jax.make_jaxpr(cut)(jnp.int32(0)).jaxpr, "gather")
    assert taken.outvars[0].aval.shape == (2, pages, PAGE, G, D)
