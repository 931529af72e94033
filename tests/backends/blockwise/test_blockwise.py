"""What blockwise alone has: problems of one tile, keys that stay as they lie, and what never reaches a sum."""

from __future__ import annotations

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import masks, mods, scores
from jattn.backends.blockwise import BLOCKWISE
from jattn.backends.blockwise.sizes import Limits
from tests.cases import CASES, make
from tests.evaluate import assert_agree, evaluate
from tests.tolerances import assert_close

WAYS = {"joined": 64, "per head": 0}  # rows up to which keys stay joined


@functools.lru_cache(maxsize=1)
def _wanted(name):
    return evaluate(make(name, jnp.float64), "reference")


@pytest.fixture
def way(request):
    """The backend that holds keys in one of the two ways."""
    return dataclasses.replace(BLOCKWISE, settings=Limits(few=WAYS[request.param]))


SOFTMAX = [x for x in CASES if not any(y in x for y in ("sigmoid", "sparsemax", "entmax15", "hard"))]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("way", WAYS, indirect=True)
@pytest.mark.parametrize("name", SOFTMAX)
def test_every_case_in_one_tile(name, way):
    got = evaluate(make(name, jnp.float64), way)
    assert_agree(got, _wanted(name), "float64")
    assert_close(got.slope, got.slope_from_gradients, 1e-11, "forward mode")


def _qkv(b=2, t=4, s=12, h=4, g=2, d=8):
    random = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(random.standard_normal(shape), jnp.float32)
    return draw(b, t, h, d), draw(b, s, g, d), draw(b, s, g, d)


# What nobody sees


def _gradients(q, k, v, dout, dlse, **options):
    fn = functools.partial(jattn.attention, return_lse=True, **options)
    (out, lse), pull = jax.vjp(fn, q, k, v)
    return out, lse, *pull((dout, dlse))


@pytest.mark.parametrize("way", WAYS, indirect=True)
@pytest.mark.parametrize("blocks", [None, (2, 4), (3, 5)])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_nobody_sees_reaches_nothing(bad, blocks, way):
    """A row that sees nothing, with all that stands in it, and keys past every length, of one batch element."""
    q, k, v = _qkv()
    dout, dlse = jnp.ones_like(q), jnp.ones(q.shape[:3])
    mask = masks.lengths(jnp.asarray([5, 12]), jnp.asarray([4, 3])) & masks.causal(6)
    wanted = _gradients(q, k, v, dout, dlse, mask=mask, blocks=blocks, implementation=way)
    spoil = lambda x, *at: x.at[at].set(bad)
    got = _gradients(
        spoil(q, 1, 3),
        spoil(k, 0, slice(5, None)),
        spoil(v, 0, slice(5, None)),
        spoil(dout, 1, 3),
        spoil(dlse, 1, 3),
        mask=mask,
        blocks=blocks,
        implementation=way,
    )
    chex.assert_trees_all_equal(got, wanted)
    assert np.all(got[0][1, 3] == 0)
    assert np.all(np.isneginf(got[1][1, 3]))
    assert np.all(got[2][1, 3] == 0)
    assert np.all(got[3][0, 5:] == 0)


@pytest.mark.parametrize("blocks", [None, (2, 4)])
def test_tangents_of_what_nobody_sees(blocks):
    q, k, v = _qkv()
    mask = masks.lengths(jnp.asarray([5, 12]), jnp.asarray([4, 3]))
    fn = functools.partial(jattn.attention, mask=mask, implementation="blockwise", return_lse=True, blocks=blocks)
    clean = jax.jvp(fn, (q, k, v), (q, k, v))
    q, k, v = q.at[1, 3].set(jnp.nan), k.at[0, 5:].set(jnp.nan), v.at[0, 5:].set(jnp.nan)
    chex.assert_trees_all_equal(jax.jvp(fn, (q, k, v), (q, k, v)), clean)


@pytest.mark.parametrize("way", WAYS, indirect=True)
@pytest.mark.parametrize("blocks", [None, (4, 4), (2, 5)])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_seen_is_told(bad, blocks, way):
    q, k, v = _qkv()
    mod = mods.function(lambda s, i, j: jnp.where((i == 1) & (j == 5), bad, s))
    out, lse = jattn.attention(q, k, v, mods=mod, implementation=way, blocks=blocks, return_lse=True)
    assert np.isnan(out[:, 1]).all()
    assert np.isnan(lse[:, 1]).all()
    assert np.isfinite(np.delete(out, 1, axis=1)).all()
    assert np.isfinite(np.delete(lse, 1, axis=1)).all()


@pytest.mark.parametrize("blocks", [None, (2, 4), (2, 5)])
def test_a_row_of_the_least_bias_is_the_mean(blocks):
    q, k, v = _qkv(h=2)
    least = float(jnp.finfo(jnp.float32).min)
    bias = jnp.zeros((1, 1, 4, 1)).at[0, 0, 2].set(least)
    out, lse = jattn.attention(q, k, v, bias=bias, implementation="blockwise", blocks=blocks, return_lse=True)
    np.testing.assert_allclose(out[:, 2], v.mean(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(lse[:, 2], least, rtol=1e-6)


@pytest.mark.parametrize("sizes", [{"b": 0}, {"t": 0}, {"s": 0}])
def test_nothing_at_all(sizes):
    q, k, v = _qkv(**sizes)
    fn = functools.partial(jattn.attention, implementation="blockwise", return_lse=True, mask=masks.causal())
    (out, lse), pull = jax.vjp(fn, q, k, v)
    chex.assert_shape([out, lse], [q.shape, q.shape[:3]])
    assert not out.any()
    assert np.isneginf(lse).all()
    chex.assert_trees_all_equal_shapes(pull((out, lse)), (q, k, v))
    assert not any(x.any() for x in pull((jnp.ones_like(out), jnp.ones_like(lse))))
    (_, _), (dout, dlse) = jax.jvp(fn, (q, k, v), (q, k, v))
    assert not dout.any()
    assert not dlse.any()


# Tables


def test_long_additive_masks_are_traced_at_once():
    x = jax.ShapeDtypeStruct((1, 10**6, 1, 16), jnp.float32)
    score = scores.additive(jnp.ones((16, 8)), jnp.ones((16, 8)), jnp.ones(8))
    fn = functools.partial(jattn.attention, score=score, mask=masks.causal())
    text = jax.jit(fn).lower(x, x, x).as_text()
    assert len(text) < 2**21
