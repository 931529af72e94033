"""The devices of a sequence are a closed loop of neighbours."""

from __future__ import annotations

import itertools
import types

import jax
import numpy as np
import pytest

from jattn import parallel
from jattn.parallel import _mesh


def points(*sides):
    return np.array(list(itertools.product(*map(range, sides))))


@pytest.mark.parametrize(
    ("sides", "length"),
    [((4, 4, 1, 1), 4), ((16, 16, 1, 1), 32), ((16, 16, 1, 1), 256), ((4, 4, 4, 2), 16), ((4, 4, 4, 1), 64),
     ((2, 1, 1, 1), 2), ((3, 4, 1, 1), 12), ((4, 3, 3, 1), 36), ((8, 16, 1, 1), 8)],
)  # fmt: skip
def test_each_loop_is_closed_and_all_go_the_same_way(sides, length):
    places = np.random.default_rng(0).permutation(points(*sides))
    found = _mesh.loops(places, length)
    assert found is not None
    assert sorted(found.ravel()) == list(range(len(places)))
    loops = places[found]
    steps = np.roll(loops, -1, axis=1) - loops
    assert (abs(steps).sum(-1) == 1).all()
    assert (steps == steps[:1]).all()


def test_two_rows_where_they_fit():
    order = _mesh.loops(points(16, 16, 1, 1), 32)
    assert order is not None
    loop = points(16, 16, 1, 1)[order[0]]
    assert sorted(len(set(loop[:, n])) for n in range(2)) == [2, 16]


@pytest.mark.parametrize(("sides", "length"), [((4, 4, 1, 1), 3), ((3, 3, 1, 1), 9), ((8, 1, 1, 1), 8)])
def test_where_there_is_no_loop(sides, length):
    assert _mesh.loops(points(*sides), length) is None


def test_holes_are_no_torus():
    assert _mesh.loops(points(4, 4, 1, 1)[1:], 5) is None


def test_devices_that_say_where_they_stand():
    devices = [
        types.SimpleNamespace(coords=(x, y, 0), core_on_chip=0) for x, y in itertools.product(range(4), range(2))
    ]
    order = _mesh._in_loops(devices, 4)
    assert order is not None
    assert order.shape == (2, 4)
    assert _mesh._in_loops([object()] * 4, 2) is None


def test_a_mesh_of_what_is_here():
    one = jax.devices()[:1]
    assert dict(parallel.mesh(data=1, sequence=1, devices=one).shape) == {"data": 1, "sequence": 1}
    with pytest.raises(ValueError, match="takes 6 devices, and there are 1"):
        parallel.mesh(data=2, sequence=3, devices=one)
    with pytest.raises(ValueError, match="ints >= 1"):
        parallel.mesh(data=0)
    with pytest.raises(ValueError, match="ints >= 1"):
        parallel.mesh(data=True)
