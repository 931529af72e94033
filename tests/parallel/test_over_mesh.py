"""A call on whole arrays over two devices: cut along whichever axis of the mesh has them, it is what one computes."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding

import jattn
from jattn import gates, masks, mods
from jattn.parallel._over_mesh import over_mesh
from jattn.parallel._sharded_call import MeshAxes
from tests.parallel.calls import K, Q, V, call, mesh
from tests.problems import problem
from tests.tolerances import TOLERANCES, assert_close

NAMES = ("batch", "heads", "sequence")
SHAPES = {"batch": (2, 1, 1), "heads": (1, 2, 1), "sequence": (1, 1, 2)}
SLOPES = np.array([0.5, 0.25], np.float32)
PLACED: dict[str, Any] = {
    "mask": masks.causal() & masks.lengths(np.array([3, 8])),
    "mods": (mods.alibi(SLOPES),),
    "gates": (gates.dropout(0.5, 1),),
}
"""What looks at positions, batch elements and heads, which count over all devices."""


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("along", NAMES)
def test_a_call_is_what_it_is_on_one_device_and_lies_along_the_axis(along, kind):
    devices = mesh(*SHAPES[along], names=NAMES, kind=kind)
    axes = MeshAxes(*NAMES, tuple(devices.shape.items()))
    with jax.set_mesh(devices):
        out, lse = over_mesh(problem((Q, K, V), PLACED), devices, call("gather", axes))
    wanted = jattn.attention(Q, K, V, **PLACED, return_lse=True)
    for x, y in zip((out, lse), wanted, strict=True):
        assert_close(x, y, TOLERANCES["float32"].value)
        assert x.sharding.is_equivalent_to(NamedSharding(devices, axes.spec("bth", x.ndim)), x.ndim)
    dim = {"batch": 0, "sequence": 1, "heads": 2}[along]
    assert [x.data.shape[dim] * 2 for x in out.addressable_shards] == [Q.shape[dim]] * 2


def test_devices_may_have_query_heads_of_one_key_head():
    devices = mesh(2, 1, names=("heads", "sequence"))
    axes = MeshAxes(None, "heads", "sequence", tuple(devices.shape.items()))
    one = [x[:, :, :1] for x in (K, V)]
    out = over_mesh(problem((Q, *one), {"mods": PLACED["mods"]}), devices, call("gather", axes, lse=False))
    assert_close(out, jattn.attention(Q, *one, mods=PLACED["mods"]), TOLERANCES["float32"].value)


def test_an_axis_that_is_not_named_has_the_same_on_all_its_devices():
    devices = mesh(2, 1, names=("other", "sequence"))
    axes = MeshAxes(None, None, "sequence", tuple(devices.shape.items()))
    out = over_mesh(problem((Q, K, V), PLACED), devices, call("gather", axes, lse=False))
    first, second = (np.asarray(x.data) for x in out.addressable_shards)
    assert first.shape == Q.shape
    np.testing.assert_array_equal(first, second)
    assert_close(first, jattn.attention(Q, K, V, **PLACED), TOLERANCES["float32"].value)
