"""The soft cap against its formula, traced and as a number."""

from __future__ import annotations

import jax.numpy as jnp

from jattn import mods
from tests.mods.formulas import agree, blockwise, plain


def test_softcap(draw):
    arrays = *draw.inputs(), draw.number(0.7)
    wanted = lambda q, k, v, cap: plain(q, k, v, lambda x: cap * jnp.tanh(x / cap))
    agree(lambda q, k, v, cap: blockwise()(q, k, v, mods=mods.softcap(cap)), wanted, arrays)
    agree(
        lambda q, k, v: blockwise()(q, k, v, mods=mods.softcap(0.7)), lambda q, k, v: wanted(q, k, v, 0.7), arrays[:3]
    )
