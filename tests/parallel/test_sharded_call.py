"""Where the arrays of a call lie, by the axes that they have."""

from __future__ import annotations

import dataclasses

import pytest
from jax.sharding import PartitionSpec

from jattn.parallel._sharded_call import MeshAxes

AXES = MeshAxes("batch", "heads", "sequence", (("batch", 2), ("other", 3), ("sequence", 8), ("heads", 4)))


def test_devices_are_counted_along_an_axis_and_there_is_one_along_none():
    assert [AXES.count(x) for x in ("batch", "heads", "sequence", None)] == [2, 4, 8, 1]
    assert AXES.devices == 8
    assert dataclasses.replace(AXES, sequence="other").devices == 3


@pytest.mark.parametrize(
    ("axes", "ndim", "wanted"),
    [
        ("bth", 4, ("batch", "sequence", "heads", None)),  # queries
        ("bsh", 4, ("batch", "sequence", "heads", None)),  # keys
        ("bth", 3, ("batch", "sequence", "heads")),
        ("bhts", 4, ("batch", "heads", "sequence", None)),  # a bias: each device has its own rows of all keys
        ("ts", 2, ("sequence", None)),
        ("s", 1, ("sequence",)),
        ("h", 3, ("heads", None, None)),  # a table of each head
        ("", 2, (None, None)),
    ],
)
def test_an_array_lies_along_what_it_has(axes, ndim, wanted):
    assert AXES.spec(axes, ndim) == PartitionSpec(*wanted)


def test_heads_that_do_not_divide_and_axes_that_are_not_named_lie_whole():
    assert AXES.spec("bsh", 4, head=False) == PartitionSpec("batch", "sequence", None, None)
    alone = MeshAxes(None, None, "sequence", (("sequence", 8),))
    assert alone.spec("bth", 4) == PartitionSpec(None, "sequence", None, None)
