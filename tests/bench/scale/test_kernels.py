"""What kernels take, from what was counted."""

import pytest
from jattn_kernels.chips import TPUS

from bench.scale import _kernels


def test_kernels_are_below_the_chips_peak_and_backward_takes_longer():
    for name in ("v5e", "v5p", "tpu7x"):
        forward, backward = (_kernels.milliseconds("jattn", name, 2**14, 2**14, "full", x) for x in ("fwd", "bwd"))
        assert forward is not None
        assert backward is not None
        assert 1e3 * 4 * 128 * 2**28 / TPUS[name].peak() < forward < backward


def test_recorded_kernels_of_an_h100():
    full, causal = (_kernels.milliseconds("jattn", "h100", 4096, 4096, mask, "fwd") for mask in ("full", "causal"))
    backward = _kernels.milliseconds("jattn", "h100", 4096, 4096, "full", "bwd")
    assert full is not None
    assert causal is not None
    assert backward is not None
    assert full / 2 < causal < full
    assert 3 < backward / full < 4  # seven products where forward has two


def test_splash_is_what_was_kept_and_never_counted_now():
    one, two = (_kernels.milliseconds("splash", "v5e", n, n, "full", "fwd") for n in (2**14, 2**15))
    if one is not None and two is not None:  # kept for the versions that are installed here
        assert two == pytest.approx(4 * one)


def test_without_splash_there_is_no_time_of_it():
    missing = lambda modules: [name for name in modules if name == "tokamax"]
    assert _kernels._kept("v5e", 2**14, "full", "fwd", missing) is None


def test_half_of_a_square_is_causal():
    assert _kernels.pairs(4, 4, "causal") == 10
    assert _kernels.pairs(4, 8, "full") == 32
