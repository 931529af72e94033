"""What a strategy sends and takes: figures small enough to follow by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from jattn_kernels.chips import CHIPS, TPUS

from jattn.parallel._cost import Load, cost

V5E = dataclasses.replace(
    TPUS["v5e"], link=1e6, bandwidth=1e12
)  # a byte takes a microsecond, and what is moved nothing
FOUR = Load(devices=4, query=8000, keys=1000, out=8000, itemsize=2)


@pytest.mark.parametrize(
    ("strategy", "backward", "sent"),
    [
        ("ring", False, 4 * 1000),
        ("ring", True, 1000 + 3 * 3000 + 1000),
        ("all_to_all", False, 17000 * 3 // 4),
        ("all_to_all", True, 17000 * 3 // 4),
        ("gather", False, 3000),
        ("gather", True, 3000),
    ],
)
def test_bytes(strategy, backward, sent):
    assert cost(strategy, FOUR, None, None, backward=backward).sent == sent
    assert cost(strategy, FOUR._replace(devices=1), None, None, backward=backward).sent == 0


def test_a_step_takes_the_longer_of_the_two():
    """Keys take 1 ms to the next device; kernels 3, then 0.5 ms, which hide as much."""
    times = np.full((4, 4), 0.5) + 2.5 * np.eye(4)
    one = cost("ring", FOUR, times, V5E)
    assert one.compute == pytest.approx(4.5, rel=1e-3)
    assert one.network == pytest.approx(4)
    assert one.hidden == pytest.approx(2.5 / 4, rel=1e-3)
    assert one.total == pytest.approx(6, rel=1e-3)


def test_what_goes_home_is_waited_for():
    one = cost("ring", FOUR, np.full((4, 4), 100.0), V5E, backward=True)
    assert one.network == pytest.approx(11)
    assert one.hidden == pytest.approx(10 / 11)


def test_the_busiest_device_is_waited_for():
    times = np.tril(np.ones((4, 4)))
    computes = {x: cost(x, FOUR, times, V5E).compute for x in ("ring", "all_to_all", "gather")}
    assert computes == {"ring": pytest.approx(4, rel=1e-3), "all_to_all": 2.5, "gather": 4}


@pytest.mark.parametrize(
    ("chip", "devices", "crowding"), [("v5e", 4, 1), ("v5e", 64, 2), ("v5e", 256, 2), ("v5p", 64, 1), ("h100", 8, 1)]
)
def test_half_of_a_torus_sends_to_the_other(chip, devices, crowding):
    load = FOUR._replace(devices=devices)
    one = cost("all_to_all", load, np.zeros((devices, devices)), CHIPS[chip])
    assert CHIPS[chip].link is not None
    assert one.network == pytest.approx(crowding * 1e3 * one.sent / CHIPS[chip].link)


def test_two_passes():
    times = np.full((4, 4), 0.5)
    forward, backward = (cost("ring", FOUR, times, V5E, backward=x) for x in (False, True))
    both = forward.then(backward)
    assert both.sent == forward.sent + backward.sent
    assert forward.total is not None
    assert backward.total is not None
    assert both.total == pytest.approx(forward.total + backward.total)
    unknown = forward.then(cost("ring", FOUR, None, V5E))
    assert (unknown.compute, unknown.hidden, unknown.total) == (None, None, None)
    assert cost("ring", FOUR, times, CHIPS["l4"]).total is None  # which has no link
