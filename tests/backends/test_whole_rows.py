"""Whole rows of scores, a strip of queries at a time: the same for strips of any size."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import pytest

from jattn.backends import whole_rows
from jattn.backends.blockwise import BLOCKWISE
from jattn.backends.contract import Direct
from tests.cases import make
from tests.evaluate import assert_agree, evaluate
from tests.tolerances import assert_close


@functools.lru_cache(maxsize=8)
def _wanted(name):
    return evaluate(make(name, jnp.float64), "reference")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("strip", [1, 300, 2000])
def test_strips_of_whole_rows(strip):
    """Strips of one row, of some rows and of all agree with the reference, for normalisers that have no online form and
    so need whole rows.  Elementwise ones take five keys at a time, so that some tiles are left out and the last one
    moves back."""
    strip = whole_rows.StripSize(strip, 1, 4, 5)
    backend = Direct("rows", BLOCKWISE.refuses, lambda x: (whole_rows.attention(x, strip), None))
    for name in ("sparsemax-empty-rows", "sigmoid-learned-bias", "entmax15", "relu", "stick-breaking"):
        got = evaluate(make(name, jnp.float64), backend)
        assert_agree(got, _wanted(name), "float64")
        assert_close(got.slope, got.slope_from_gradients, 1e-11, "forward mode")
