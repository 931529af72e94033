"""What a call over many devices may be, and which strategy it takes; errors come before anything is compiled."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

import jattn
from jattn import normalizers, parallel
from jattn.parallel._checks import check_choices, check_sizes, check_strategy, default_strategy, mesh_axes
from jattn.parallel._sharded_call import MeshAxes
from tests.problems import problem

MESH = AbstractMesh((2, 8), ("batch", "sequence"))  # for errors a mesh needs no devices
Q = jnp.ones((2, 32, 4, 8))
WRONG = {
    "an axis that is not there": ({"sequence_axis": "time"}, ValueError, "'time' is no axis of the mesh, which has batch, seq"),
    "an axis twice": ({"batch_axis": "sequence"}, ValueError, "each axis of the mesh can be of one kind"),
    "a strategy": ({"strategy": "star"}, ValueError, "strategy must be one of"),
    "an order": ({"order": "striped"}, ValueError, "order must be one of"),
    "a length": ({"key": Q[:, :30], "value": Q[:, :30]}, ValueError, "s = 30 does not divide .* pad it to 32, .* masks.lengths"),
    "a length in zig-zag order": (
        {"order": "zigzag", "key": Q[:, :24], "value": Q[:, :24]}, ValueError, "16 chunks .* zig-zag order: pad it to 32",
    ),
    "a batch": ({"query": Q[:1], "key": Q[:1], "value": Q[:1], "batch_axis": "batch"}, ValueError, "b = 1 does not divide"),
    "heads": ({"query": Q[:, :, :3], "key": Q[:, :, :3], "value": Q[:, :, :3], "head_axis": "batch"}, ValueError, "h = 3 and g"),
    "heads to exchange": ({"strategy": "all_to_all"}, ValueError, "h = 4, g = 4 on a device do not divide"),
    "whole rows in a ring": (
        {"strategy": "ring", "normalizer": normalizers.sparsemax()}, jattn.UnsupportedError, "sparsemax sees whole rows",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use_is_said_before_compiling(name):
    given, error, words = WRONG[name]
    given = {"query": Q, "key": Q, "value": Q, "sequence_axis": "sequence", "mesh": MESH, **given}
    with pytest.raises(error, match=words):
        parallel.attention(given.pop("query"), given.pop("key"), given.pop("value"), **given)


def test_no_mesh():
    with pytest.raises(ValueError, match="needs a mesh"):
        parallel.attention(Q, Q, Q, sequence_axis="sequence")


@pytest.mark.parametrize("strategy", [None, "ring", "all_to_all", "gather"])
@pytest.mark.parametrize("order", ["contiguous", "zigzag"])
def test_what_there_is_may_be_chosen(strategy, order):
    check_choices(strategy, order)
    for wrong, words in (((str(strategy).upper(), order), "strategy"), ((strategy, order.upper()), "order")):
        with pytest.raises(ValueError, match=f"{words} must be one of"):
            check_choices(*wrong)


def test_axes_are_those_of_the_mesh_by_their_names():
    assert mesh_axes(MESH, "batch", None, "sequence") == MeshAxes(
        "batch", None, "sequence", (("batch", 2), ("sequence", 8))
    )
    with pytest.raises(ValueError, match="head_axis='heads' is no axis of the mesh, which has batch, sequence"):
        mesh_axes(MESH, "batch", "heads", "sequence")


AXES = MeshAxes("b", "h", "s", (("b", 2), ("h", 4), ("s", 2)))
SIZES = {"b": 6, "t": 8, "s": 12, "h": 8, "g": 4}


@pytest.mark.parametrize(
    ("sizes", "order", "inside", "words"),
    [
        ({}, "contiguous", False, None),
        ({}, "zigzag", False, None),
        ({"g": 2}, "contiguous", False, None),  # several devices have query heads of one key head
        ({"g": 3}, "contiguous", False, "h = 8 and g = 3 do not divide by the 4 devices"),
        ({"s": 10}, "contiguous", False, None),
        ({"s": 10}, "zigzag", False, "s = 10 does not divide in the 4 chunks .* pad it to 12"),
        ({"t": 1}, "contiguous", False, "t = 1 does not divide in the 2 chunks .* pad it to 2"),
        ({"t": 1}, "contiguous", True, None),  # a device's own
        ({"t": 1}, "zigzag", True, "t = 1 does not divide in the 2 chunks"),
        ({"t": 0}, "contiguous", False, "t = 0 does not divide .* pad it to 2"),
        ({"b": 5}, "contiguous", False, "b = 5 does not divide by the 2 devices along 'b'"),
    ],
)
def test_what_lies_along_an_axis_divides_by_its_devices(sizes, order, inside, words):
    check = lambda: check_sizes({**SIZES, **sizes}, AXES, order, inside)
    if words is None:
        check()
        return
    with pytest.raises(ValueError, match=words):
        check()


SPARSE: dict[str, Any] = {"normalizer": normalizers.sparsemax()}


@pytest.mark.parametrize(
    ("h", "g", "options", "inside", "default", "exchanges"),
    [
        (8, 8, {}, False, "ring", True),
        (8, 8, SPARSE, False, "all_to_all", True),
        (8, 4, SPARSE, False, "gather", False),  # one key head on each device
        (8, 4, SPARSE, True, "all_to_all", True),  # heads are a device's own, which has four of them
        (4, 4, SPARSE, False, "gather", False),
        (3, 3, {}, True, "ring", False),
    ],
)
def test_a_strategy_is_one_that_can_do_what_is_asked(h, g, options, inside, default, exchanges):
    q, k = (np.ones((2, 8, n, 4), np.float32) for n in (h, g))
    whole = problem((q, k, k), options)
    assert default_strategy(whole, AXES, inside) == default
    check_strategy(whole, AXES, default, inside)
    check_strategy(whole, AXES, "gather", inside)
    if not exchanges:
        with pytest.raises(ValueError, match="all_to_all gives each of the 2 devices along 's' some of the heads"):
            check_strategy(whole, AXES, "all_to_all", inside)
    if options:
        with pytest.raises(jattn.UnsupportedError, match="normalizer sparsemax sees whole rows"):
            check_strategy(whole, AXES, "ring", inside)
