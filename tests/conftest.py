"""What every test runs under."""

import gc
import itertools
import pathlib

import chex
import hypothesis
import jax
import jax.numpy as jnp
import pytest

from tests.cases import Draw, Sizes

hypothesis.settings.register_profile("jattn", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("jattn")
_TESTS = itertools.count(1)


@pytest.fixture(autouse=True)
def _no_traces_of_other_tests():
    """`chex.assert_max_traces` counts by source, so that a parametrized test would go on from its other rows."""
    chex.clear_trace_counter()


@pytest.fixture(autouse=True)
def _room_for_programs():
    """Frees compiled programs before they are too many for a process.

    Each holds about seven memory maps, of which Linux gives a process 65530 (vm.max_map_count) and beyond which XLA crashes.
    To list them takes 10 ms, as long as many a test: they are counted after one test of ten.
    """
    yield
    maps = pathlib.Path("/proc/self/maps")
    if next(_TESTS) % 10 == 0 and maps.exists() and len(maps.read_bytes().splitlines()) > 16_384:
        jax.clear_caches()
        gc.collect()  # of programs that stand in cycles


@pytest.fixture
def x64():
    """The test runs with 64-bit types."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def draw(x64):
    """Draws arrays of the table's sizes in float64."""
    del x64
    return Draw(Sizes(), jnp.float64, 0)
