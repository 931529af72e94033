"""What every test runs under; set before jax is imported."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
if "JAX_COMPILATION_CACHE_DIR" in os.environ:  # shared by the workers of one run, and kept between runs of CI
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import chex
import hypothesis
import jax
import pytest

from tests import signatures

signatures.install()  # imports jattn, without which collecting doctests would import its modules once more, as others

hypothesis.settings.register_profile("jattn", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("jattn")


@pytest.fixture(autouse=True)
def _no_traces_of_other_tests():
    """`chex.assert_max_traces` counts by source, so that a parametrized test would go on from its other rows."""
    chex.clear_trace_counter()


@pytest.fixture
def x64():
    """The test runs with 64-bit types."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def quick():
    """For modules whose tests spend their time on compiling."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
