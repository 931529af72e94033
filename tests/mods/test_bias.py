"""Biases of any axes against arrays that are added, and the argument that is short for them."""

from __future__ import annotations

import pytest

from jattn import mods
from tests.cases import AXES
from tests.mods.formulas import SIZES, agree, blockwise, plain


def test_bias_of_every_subset_of_axes(draw):
    """All at once: each has its own gradient, summed over the axes that it lacks."""
    arrays = *draw.inputs(), *(draw.normal(axes, scale=0.5) for axes in AXES)
    spread = lambda x, axes: x.reshape([getattr(SIZES, a) if a in axes else 1 for a in "bhts"])
    got = lambda q, k, v, *rest: blockwise()(q, k, v, mods=[mods.bias(*x) for x in zip(rest, AXES, strict=True)])
    agree(got, lambda q, k, v, *rest: plain(q, k, v, lambda x: x + sum(map(spread, rest, AXES))), arrays)


@pytest.mark.parametrize("shape", [(), (13, 1), (4, 1, 17), (2, 1, 1, 17)])
def test_bias_argument_of_every_shape(draw, shape):
    arrays = *draw.inputs(), draw.normal("", *shape)
    wanted = lambda q, k, v, bias: plain(q, k, v, lambda x: x + bias)
    agree(lambda q, k, v, bias: blockwise()(q, k, v, bias=bias), wanted, arrays)
