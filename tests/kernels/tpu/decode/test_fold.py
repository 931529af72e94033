"""How heads fold: what divides what, and that rows which are turned are all of them, each once."""

import jax.numpy as jnp
import numpy as np
import pytest
from jattn_kernels.tpu.decode.fold import ROWS, Fold, divided, entry, fold_of
from jattn_kernels.tpu.sizes import LANES

SHAPES = [(1, 8, 8), (1, 32, 8), (3, 28, 4), (2, 6, 3), (5, 7, 1)]  # t, h, g


@pytest.mark.parametrize("page", [0, 16, 64, 256])
@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize(("t", "h", "g"), SHAPES)
@pytest.mark.parametrize("s", [1, 127, 1000, 8192])
def test_chunks_have_whole_lanes_and_pages_and_cover_the_keys(t, h, g, s, spread, page):
    fold = fold_of(t, s, h, g, 2048, spread, False, page)
    assert fold.columns % LANES == 0 and fold.columns % fold.step == 0
    assert not page or fold.chunk % page == 0
    assert not spread or fold.step % (LANES * g) == 0
    assert (fold.chunks - 1) * fold.chunk < s <= fold.chunks * fold.chunk == fold.padded["s"]
    assert fold.whole == (fold.padded["s"] == s)


@pytest.mark.parametrize("step", [1024, 4096])
def test_a_product_has_about_so_many_columns(step):
    assert fold_of(1, 8192, 32, 8, 1024, False, True, step=step).step == step
    assert fold_of(1, 128, 32, 8, 1024, False, True, step=step).step == 1024


@pytest.mark.parametrize(("t", "h", "g"), SHAPES)
def test_runs_are_all_rows_each_once(t, h, g):
    fold = Fold(t, 1, h, g, LANES, LANES, turned=True)
    rows = [(row + n, first + n * apart) for row, first, apart in fold.runs for n in range(g)]
    to, source = zip(*rows, strict=True)
    assert sorted(to) == sorted(source) == list(range(t * h)) and fold.rows >= t * h and fold.rows % ROWS == 0
    whole = np.arange(t * h).reshape(t, g, h // g)
    np.testing.assert_array_equal([source[to.index(n)] for n in range(t * h)], np.moveaxis(whole, 1, 2).ravel())


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("t", "h", "g"), SHAPES)
def test_the_key_head_of_a_row(t, h, g, turned):
    fold = Fold(t, 1, h, g, LANES, LANES, turned=turned)
    wanted = np.arange(h) % g if turned else np.arange(h) // (h // g)
    np.testing.assert_array_equal(fold.key_head(jnp.arange(h, dtype=jnp.int32)), wanted)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 12, 40, 127, 1000])
def test_division_without_one(n):
    x = np.unique(np.concatenate([np.arange(5000), np.arange(1, 2**20 // n) * n, np.arange(1, 2**20 // n) * n - 1]))
    quotient, rest = divided(jnp.asarray(x, jnp.int32), n)
    np.testing.assert_array_equal(quotient, x // n)
    np.testing.assert_array_equal(rest, x % n)


def test_elements_use_the_entries_that_there_are():
    assert entry(5, 1) == 0 and entry(5, 6, 6) == 5
    assert int(entry(jnp.int32(5), 3)) == 2
