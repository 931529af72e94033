"""What a ring adds up, under types of 64 bits, where a Python int is not of the dtype of a position on a device."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import jattn
from jattn import masks, mods, parallel
from tests.parallel.calls import K, Q, V
from tests.tolerances import assert_close

T, H = Q.shape[1:3]
PAIRS = jnp.sin(jnp.arange(T * T, dtype=jnp.float32)).reshape(T, T)
OPTIONS = {
    "bias": lambda bias, slopes, ids: {"bias": bias},
    "alibi": lambda bias, slopes, ids: {"mods": mods.alibi(slopes), "mask": masks.causal()},
    "segments": lambda bias, slopes, ids: {"mask": masks.segments(ids, ids)},
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("order", ["contiguous", "zigzag"])
@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("name", OPTIONS)
def test_gradients_under_x64(name, devices, order):
    over = parallel.mesh(sequence=devices, devices=jax.devices()[:devices])
    zigzag = order == "zigzag"
    moved = lambda x, axis=1: parallel.zigzag(x, devices, axis) if zigzag else x
    arrays = (*map(jnp.asarray, (Q, K, V)), PAIRS, jnp.ones(H, jnp.float32))
    ids = jnp.broadcast_to(jnp.arange(T) // 3, Q.shape[:2])

    def alone(q, k, v, bias, slopes):
        return jnp.sum(jnp.sin(jattn.attention(q, k, v, **OPTIONS[name](bias, slopes, ids))))

    def ring(q, k, v, bias, slopes):
        options = OPTIONS[name](moved(moved(bias), 0), slopes, moved(ids))
        around = {"mesh": over, "sequence_axis": "sequence", "order": order}
        return jnp.sum(jnp.sin(parallel.ring(*map(moved, (q, k, v)), **around, **options)))

    of = lambda fn: jax.jit(jax.value_and_grad(fn, (0, 1, 2, 3, 4)))(*arrays)
    for got, wanted in zip(jax.tree.leaves(of(ring)), jax.tree.leaves(of(alone)), strict=True):
        assert got.dtype == jnp.float32
        assert_close(got, wanted, 1e-5)
