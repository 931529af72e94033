"""Where mods stand: one after the other, after the scaling and the bias, before the mask."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jattn import masks, mods, scores
from tests.mods.formulas import I, J, agree, blockwise, plain
from tests.tolerances import assert_close


def test_mods_come_in_order_and_the_bias_first(draw):
    arrays = *draw.inputs(), draw.normal("hts"), draw.normal("h")

    def wanted(q, k, v, bias, m):
        return plain(q, k, v, lambda x: 1.5 * jnp.tanh((x + bias) / 1.5) - m[:, None, None] * np.abs(I - J), I >= J)

    def got(q, k, v, bias, m):
        chain = (mods.softcap(1.5), mods.alibi(m))
        return blockwise()(q, k, v, bias=bias, mods=chain, mask=masks.causal())

    agree(got, wanted, arrays)
    turned = blockwise()(*arrays[:3], mods=(mods.alibi(arrays[4]), mods.softcap(1.5)))
    assert np.abs(turned - blockwise()(*arrays[:3], mods=(mods.softcap(1.5), mods.alibi(arrays[4])))).max() > 1e-3
    agree(
        lambda q, k, v, m: blockwise()(q, k, v, mods=(mods.alibi(m), mods.softcap(1.5))),
        lambda q, k, v, m: plain(q, k, v, lambda x: 1.5 * jnp.tanh((x - m[:, None, None] * np.abs(I - J)) / 1.5)),
        (*arrays[:3], arrays[4]),
    )


def test_mods_come_after_scaling_and_before_the_mask(draw):
    """A mod sees the scaled score, and cannot bring back what the mask forbids."""
    q, k, v = draw.inputs()
    got = blockwise()(
        q, k, v, score=scores.dot(0.3), mask=masks.causal(), mods=mods.function(lambda s, i, j: s * s + 1e6 * (j > i))
    )
    assert_close(got, plain(q, k, v, lambda x: x * x, I >= J, scale=0.3), 2e-14)
