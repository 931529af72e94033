"""The speed of a plain product."""

import importlib.util

import pytest

from bench.cpu._matmul import matmul_gflops


@pytest.mark.parametrize("with_torch", [False, True])
def test_everybody_who_is_asked_multiplies(with_torch):
    if with_torch and importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    speeds = matmul_gflops(64, with_torch)
    assert set(speeds) == {"jax", *(["torch"] if with_torch else [])}
    assert all(0 < speed < 1e6 for speed in speeds.values())  # a petaflop in the place of a gigaflop is a wrong unit
