"""ALiBi's slopes as published, and the penalty that they are of."""

from __future__ import annotations

import numpy as np
import pytest

from jattn import mods
from tests.mods.formulas import I, J, agree, blockwise, plain

# from the paper (Press et al. 2022) for 8 heads, and its code for 12: those of 8, then every other one of 16
SLOPES = {8: [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]}
SLOPES[12] = [*SLOPES[8], 0.7071067811865476, 0.35355339059327384, 0.17677669529663692, 0.08838834764831849]
SLOPES |= {1: [2.0**-8], 2: [2.0**-4, 2.0**-8], 3: [2.0**-4, 2.0**-8, 2.0**-2]}


@pytest.mark.parametrize("heads", SLOPES)
def test_alibi_slopes(heads):
    np.testing.assert_allclose(mods.alibi_slopes(heads), SLOPES[heads], rtol=1e-6)


def test_alibi(draw):
    arrays = *draw.inputs(), draw.normal("h")
    wanted = lambda q, k, v, m: plain(q, k, v, lambda x: x - m[:, None, None] * np.abs(I - J))
    agree(lambda q, k, v, m: blockwise()(q, k, v, mods=mods.alibi(m)), wanted, arrays)
