"""Which chunks of a sequence a device has: in order, or from both ends."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn import parallel
from jattn.parallel._shares import Shares


def test_zigzag_gives_devices_chunks_from_both_ends():
    x = jax.random.normal(jax.random.key(0), (2, 24, 3))
    there = parallel.zigzag(x, 4)
    np.testing.assert_array_equal(there[:, :6], jnp.concatenate([x[:, :3], x[:, 21:]], 1))
    np.testing.assert_array_equal(parallel.unzigzag(there, 4), x)
    with pytest.raises(ValueError, match="that 8 divides"):
        parallel.zigzag(x[:, :20], 4)


@pytest.mark.parametrize("devices", [1, 2, 5])
@pytest.mark.parametrize("zigzag", [False, True])
def test_each_chunk_is_one_devices(devices, zigzag):
    shares = Shares(devices, zigzag)
    order = shares.order()
    assert sorted(order) == list(range(shares.count))
    assert [order[n :: shares.each] for n in range(shares.each)] == [
        [shares.chunk(r, n) for r in range(devices)] for n in range(shares.each)
    ]
    if zigzag:  # as far from one end as from the other, so that all have as much to attend to under a causal mask
        assert {shares.chunk(r, 0) + shares.chunk(r, 1) for r in range(devices)} == {2 * devices - 1}


def test_a_device_has_its_chunks_side_by_side():
    assert Shares(4, False).slices(6) == [slice(0, 6)]
    assert Shares(4, True).slices(6) == [slice(0, 3), slice(3, 6)]
    assert Shares(4, True).slices(0) == [slice(0, 0), slice(0, 0)]


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("devices", [1, 2, 3])
def test_both_orders_are_inverse_along_any_axis(devices, axis):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((12, 12, 12)), jnp.float32)
    there = parallel.zigzag(x, devices, axis)
    np.testing.assert_array_equal(parallel.unzigzag(there, devices, axis), x)
    chunks = np.split(x, 2 * devices, axis)
    wanted = [chunks[n] for r in range(devices) for n in (r, 2 * devices - 1 - r)]
    np.testing.assert_array_equal(there, np.concatenate(wanted, axis))
