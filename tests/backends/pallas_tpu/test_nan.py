"""What NaN and infinities may reach in the TPU kernels, interpreted: what is not seen reaches nothing."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jattn_kernels.tpu.sizes import TileSizes

import jattn
from jattn import gates, masks, mods, operand
from jattn.backends.pallas_tpu import PALLAS_TPU
from jattn.backends.pallas_tpu.settings import Settings
from tests.tolerances import assert_close

B, T, S, H, G, D = 2, 150, 270, 4, 2, 8
LOWEST = float(np.finfo(np.float32).min)
RANDOM = np.random.default_rng(0)
LAYOUT = RANDOM.random((H, 15, 27)) < 0.3
LAYOUT[1, 3], LAYOUT[:2, :, 5] = False, False  # queries of one head and keys of one group that see nothing


def _numbers(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape), jnp.float32)


TILES = {  # one, and several: none of them divides a length
    "whole": TileSizes(256, 384, 384, 384),
    "tiled": TileSizes(128, 128, 128, 256),
    "transposed": TileSizes(128, 128, 128, 128, newton=True, transposed_dq=True, transposed_dkv=True),
}


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    monkeypatch.setenv("JATTN_INTERPRET", "1")


def _kernels(tiles="tiled"):
    """The backend with these tiles in both directions."""
    return dataclasses.replace(PALLAS_TPU, settings=Settings(TILES[tiles], TILES[tiles]))


def _documents(n, last):
    ids = np.repeat(np.arange(9), 33)[:n]
    return jnp.asarray(np.where(np.arange(n) % 50 == 7, last, ids), jnp.int32)


MASKS = {
    "causal": masks.causal,
    "causal-empty-rows": lambda: masks.causal(-5),
    "window": lambda: masks.window(9, -4),
    "dilated-window": lambda: masks.dilated(2) & masks.window(20, -3),
    "segments": lambda: masks.segments(_documents(T, 20), _documents(S, 30)),
    "causal-segments": lambda: masks.causal() & masks.segments(_documents(T, 20), _documents(S, 30)),
    "prefix": lambda: masks.prefix(131),
    "lengths": lambda: masks.lengths(jnp.array([131, 7]), jnp.array([140, 0])),
    "blocks": lambda: masks.blocks(LAYOUT[0], 10) & masks.window(300, -1),
    "blocks-heads": lambda: masks.blocks(LAYOUT, 10),
    "dense": lambda: masks.dense(jnp.asarray(np.random.default_rng(1).random((B, H, T, 1)) < 0.8)) & masks.prefix(200),
    "function": lambda: masks.function(lambda i, j, hole: (i > 3) & (j != hole), operand(jnp.array([1, 1, 2, 2]), "h")),
}
TERMS = {
    "alone": lambda x: {},
    "mods": lambda x: {
        "mods": (
            mods.bias(_numbers(H, T, S), "hts"),
            mods.function(lambda s, i, j, a: jnp.tanh(s / a) * a, operand(x, "bht")),
        ),
        "gates": (gates.function(lambda w, i, j, a: w * jnp.cos(a), operand(x, "bht")),),
    },
}


def _run(arrays, mask, make, implementation, cotangents):
    def fn(q, k, v, x):
        return jattn.attention(q, k, v, mask=mask, return_lse=True, implementation=implementation, **make(x))

    (out, lse), pull = jax.vjp(fn, *arrays)
    return (out, lse, *pull(cotangents))


EVERY = [(name, "alone", "tiled") for name in MASKS]
EVERY += [(name, "mods", "tiled") for name in ("causal-empty-rows", "segments", "lengths", "blocks-heads")]
EVERY += [(name, "mods", x) for name in ("causal", "causal-segments") for x in ("whole", "transposed")]


@pytest.mark.parametrize(("name", "terms", "tiles"), EVERY)
def test_what_is_not_seen_reaches_nothing(name, terms, tiles):
    """Queries that see nothing, their cotangents and their numbers; keys and values that no query sees."""
    mask, make = MASKS[name](), TERMS[terms]
    arrays = _numbers(B, T, H, D), _numbers(B, S, G, D), _numbers(B, S, G, D), 2 + jnp.sin(_numbers(B, H, T))
    cotangents = _numbers(B, T, H, D), _numbers(B, T, H)
    ones = jnp.ones((B, T, H, D)), jnp.zeros((B, T, H))
    _, lse, _, _, dv, _ = _run(arrays, mask, TERMS["alone"], "reference", ones)
    blind, unseen = jnp.isneginf(lse), (dv == 0).all(-1)
    assert blind.any() or unseen.any()
    wanted = _run(arrays, mask, make, "reference", (cotangents[0], jnp.where(blind, 0, cotangents[1])))
    bad = lambda x, where: jnp.where(
        where.reshape(*where.shape, *(1,) * (x.ndim - where.ndim)),
        jnp.where(jnp.arange(x.shape[1]) % 2, jnp.nan, jnp.inf).reshape(1, -1, *(1,) * (x.ndim - 2)),
        x,
    )
    q, k, v, x = arrays
    poisoned = bad(q, blind), bad(k, unseen), bad(v, unseen), jnp.where(jnp.swapaxes(blind, 1, 2), jnp.nan, x)
    got = _run(poisoned, mask, make, _kernels(tiles), tuple(bad(y, blind) for y in cotangents))
    for what, one, other in zip(("out", "lse", "dq", "dk", "dv", "dx"), got, wanted, strict=True):
        assert_close(one, other, 1e-4, what)


@pytest.mark.parametrize("tiles", ["whole", "transposed"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("mask", [None, masks.causal(150)], ids=["full", "causal"])
def test_what_is_seen_is_nan(mask, value, tiles):
    q, k, v = _numbers(B, T, H, D), _numbers(B, S, G, D), _numbers(B, S, G, D)
    bias = jnp.zeros((T, S)).at[17, 3].set(value).at[140, 200].set(value)
    out, lse = jattn.attention(
        q, k, v, mask=mask, mods=mods.bias(bias, "ts"), return_lse=True, implementation=_kernels(tiles)
    )
    hit = np.isin(np.arange(T), (17, 140))
    assert (np.isnan(out).all((0, 2, 3)) == hit).all()
    assert (np.isnan(lse).all((0, 2)) == hit).all()
    assert np.isfinite(np.asarray(out)[:, ~hit]).all()
    out, lse = jattn.attention(q.at[:, 17].set(value), k, v, mask=mask, return_lse=True, implementation=_kernels(tiles))
    assert np.isnan(np.asarray(lse)[:, 17]).all()
    assert np.isnan(np.asarray(out)[:, 17]).all()


@pytest.mark.parametrize("mask", [None, masks.causal(130)], ids=["full", "causal"])
def test_the_lowest_scores_are_scores(mask):
    """A row whose bias is the lowest number throughout gives the mean, and its lse is that number."""
    q, k, v = _numbers(B, T, H, D), _numbers(B, S, G, D), _numbers(B, S, G, D)
    bias = jnp.zeros((T, 1)).at[3].set(LOWEST).at[149].set(LOWEST)
    arguments = {"mask": mask, "bias": bias, "return_lse": True}
    out, lse = jattn.attention(q, k, v, implementation=_kernels(), **arguments)
    for row in (3, 149):
        seen = S if mask is None else row + 131
        mean = jnp.repeat(v[:, :seen].mean(1), H // G, axis=1)
        assert_close(out[:, row], mean, 1e-5)
        assert_close(lse[:, row], np.full((B, H), LOWEST), 1e-6)
    usual = np.delete(np.arange(T), (3, 149))
    other = jattn.attention(q, k, v, implementation="reference", **arguments)[0]
    assert_close(out[:, usual], other[:, usual], 1e-5)


def test_a_score_that_is_hidden_stays_hidden():
    """-inf under a soft cap has no weight, and takes no part in the gradients."""
    q, k, v = _numbers(B, T, H, D), _numbers(B, S, G, D), _numbers(B, S, G, D)
    hidden = jnp.where(jnp.arange(S) % 3 == 0, -jnp.inf, 0.0)

    def loss(cap, q, k, v, implementation):
        terms = mods.bias(hidden, "s"), mods.softcap(cap)
        return jnp.sum(jnp.sin(jattn.attention(q, k, v, mods=terms, implementation=implementation)))

    got, wanted = (jax.grad(loss, (0, 1, 2, 3))(jnp.float32(2), q, k, v, x) for x in (_kernels(), "blockwise"))
    for x, y in zip(got, wanted, strict=True):
        assert_close(x, y, 1e-4)
