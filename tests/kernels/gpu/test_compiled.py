"""What a tile function becomes is what Mosaic compiles, on the layouts of the tensor cores' results."""

from __future__ import annotations

import importlib.util

import jax
import pytest

pytestmark = pytest.mark.gpu

_PLUGIN = importlib.util.find_spec("jax_cuda13_plugin") is not None
_NEW = tuple(map(int, jax.__version__.split(".")[:2])) >= (0, 11)


@pytest.mark.skipif(not (_PLUGIN and _NEW), reason="needs jax 0.11 or newer and jax-cuda13-plugin")
def test_primitives_and_look_ups_compile_for_hopper():
    from tests.kernels.gpu.compiled import compile_all

    assert compile_all() == []
