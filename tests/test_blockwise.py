"""What blockwise alone has: problems of one tile, keys that stay as they lie, and what never reaches a sum."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import api, masks, mods
from jattn.backends import blockwise
from tests.cases import CASES, make
from tests.evaluate import assert_agree, evaluate
from tests.tolerances import assert_close

WAYS = {"joined": 64, "per head": 0}  # rows up to which keys stay joined


@functools.lru_cache(maxsize=1)
def _wanted(name):
    return evaluate(make(name, jnp.float64), "reference")


@pytest.fixture
def way(request, monkeypatch):
    """One of the two ways to hold keys; traces are not shared with other tests."""
    monkeypatch.setattr(blockwise, "_FEW", WAYS[request.param])
    api._run.clear_cache()
    yield
    api._run.clear_cache()


SOFTMAX = [x for x in CASES if not any(y in x for y in ("sigmoid", "sparsemax", "entmax15", "hard"))]


@pytest.mark.usefixtures("x64", "way")
@pytest.mark.parametrize("way", WAYS, indirect=True)
@pytest.mark.parametrize("name", SOFTMAX)
def test_every_case_in_one_tile(name):
    got = evaluate(make(name, jnp.float64), "blockwise")
    assert_agree(got, _wanted(name), "float64")
    assert_close(got.slope, got.slope_from_gradients, 1e-11, "forward mode")


def _qkv(b=2, t=4, s=12, h=4, g=2, d=8):
    random = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(random.standard_normal(shape), jnp.float32)
    return draw(b, t, h, d), draw(b, s, g, d), draw(b, s, g, d)
