"""Memory linear in t + s, as the compiler lays it out: nothing here is run."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import gates, masks, mods, normalizers

MiB = 2**20


def _temporary(fn, *arrays) -> int:
    memory: Any = jax.jit(fn).lower(*arrays).compile().memory_analysis()
    return memory.temp_size_in_bytes


def _array(t: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, t, 8, 64), jnp.float32)


def _passes(**options):
    """Forward; forward and backward; and tangents, as functions of q, k, v and a fourth array of their shape."""
    fn = functools.partial(jattn.attention, **options)
    return {
        "forward": lambda q, k, v, w: fn(q, k, v),
        "backward": lambda q, k, v, w: jax.vjp(fn, q, k, v)[1](w),
        "tangent": lambda q, k, v, w: jax.jvp(fn, (q, k, v), (w, w, w))[1],
        "hessian-vector product": lambda q, k, v, w: jax.jvp(jax.grad(lambda q: jnp.vdot(fn(q, k, v), w)), (q,), (w,))[
            1
        ],
    }


MASKS = {"full": None, "causal": masks.causal(), "window": masks.window(512)}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", ["forward", "backward"])
def test_long_sequences_fit(mask, name):
    fn = _passes(mask=MASKS[mask])[name]
    used = {t: _temporary(fn, *[_array(t)] * 4) for t in (4096, 8192, 16384)}
    assert used[16384] < 64 * MiB
    assert used[8192] <= 2 * used[4096]
    assert used[16384] <= 2 * used[8192]


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_terms_keep_it_linear(name):
    options = {
        "mask": masks.segments(np.arange(16384) // 700) & masks.causal(),
        "mods": (mods.alibi(mods.alibi_slopes(8)), mods.relative(np.ones((8, 32), np.float32)), mods.softcap(30.0)),
        "dropout": gates.dropout(0.1, 0),
    }
    assert _temporary(_passes(**options)[name], *[_array(16384)] * 4) < 64 * MiB


def test_content_of_relative_positions_is_linear():
    """With an entry for every relative position there is."""

    def slopes(q, k, v, table):
        said = mods.relative_content(q, table.reshape(-1, q.shape[-1])[: 2 * q.shape[1]])
        heard = mods.relative_content(k, table.reshape(-1, q.shape[-1])[: 2 * q.shape[1]], of="key")
        return jnp.sum(jattn.attention(q, k, v, mods=(said, heard), mask=masks.causal()))

    fn = jax.grad(slopes, (0, 1, 2, 3))
    used = {t: _temporary(fn, *[_array(t)] * 4) for t in (4096, 8192)}
    assert used[8192] <= 2.05 * used[4096]


@pytest.mark.parametrize("name", ["tangent", "hessian-vector product"])
def test_other_derivatives_are_linear(name):
    fn = _passes(mask=masks.causal())[name]
    used = {t: _temporary(fn, *[_array(t)] * 4) for t in (8192, 16384)}
    assert used[16384] <= 2.05 * used[8192]
    assert used[16384] < 16384 * 16384 * 4 / 4  # far from one head's scores


@pytest.mark.parametrize("normalizer", [normalizers.sparsemax(), normalizers.sigmoid()], ids=["sparsemax", "sigmoid"])
@pytest.mark.parametrize("name", ["forward", "backward"])
def test_other_normalisers_are_linear(normalizer, name):
    fn = _passes(normalizer=normalizer)[name]
    used = {t: _temporary(fn, *[_array(t)] * 4) for t in (8192, 16384)}
    assert used[16384] <= 2.05 * used[8192]
    assert used[16384] < 16384 * 16384 * 4 / 4


def test_grouped_keys_are_not_repeated():
    q = jax.ShapeDtypeStruct((1, 256, 32, 64), jnp.float32)
    k = jax.ShapeDtypeStruct((1, 65536, 1, 64), jnp.float32)
    assert _temporary(jattn.attention, q, k, k) < 65536 * 32 * 64 * 4 / 8
