"""Windows around the query's own position, and around a centre of its own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import masks
from tests.masks.pairs import SIZES, B, I, J, S, T, check_answers, check_formula, every_tiling, tilings_of

RANDOM = np.random.default_rng(0)
CENTERS = {axes: RANDOM.uniform(-2, S + 2, [getattr(SIZES, a) for a in axes]) for axes in ("t", "bt", "bht")}
WHOLE = RANDOM.integers(0, S, (B, T))
near = lambda center, left, right: (center - left <= J) & (center + right >= J)

FORMULAS = {
    "causal": (masks.causal(), I >= J),
    "causal-after": (masks.causal(4), I + 4 >= J),
    "causal-before": (masks.causal(-3), I - 3 >= J),
    "causal-traced": (masks.causal(jnp.asarray(4)), I + 4 >= J),
    "window": (masks.window(3, 2), (J >= I - 3) & (J <= I + 2)),
    "window-left": (masks.window(3), (J >= I - 3) & (J <= I)),
    "window-open-left": (masks.window(None, 2), J <= I + 2),
    "window-open-right": (masks.window(2, None), J >= I - 2),
    "window-open": (masks.window(None, None), I == I),
    "window-beside": (masks.window(5, -2), (J >= I - 5) & (J <= I - 2)),
    "window-traced": (masks.window(jnp.asarray(3), jnp.asarray(1)), (J >= I - 3) & (J <= I + 1)),
    "around": (masks.around(CENTERS["t"], 3, 2), near(CENTERS["t"][:, None], 3, 2)),
    "around-batch": (masks.around(CENTERS["bt"], 1, 4), near(CENTERS["bt"][:, None, :, None], 1, 4)),
    "around-heads": (masks.around(CENTERS["bht"], 2, None), near(CENTERS["bht"][..., None], 2, S + 4)),
    "around-whole": (masks.around(WHOLE, jnp.asarray(2), 0), near(WHOLE[:, None, :, None], 2, 0)),
}


@pytest.mark.smoke
@pytest.mark.parametrize("name", FORMULAS)
def test_each_is_its_formula(name):
    check_formula(*FORMULAS[name])


@every_tiling
@pytest.mark.parametrize("name", FORMULAS)
def test_answers(name, tilings):
    """Those of windows around centres are on the safe side: centres of a block of queries need not lie together."""
    check_answers(FORMULAS[name][0], *tilings_of(tilings), exact=name.startswith(("causal", "window")))


def test_an_offset_is_an_integer():
    """None leaves a side of a window open, and would hide nothing here."""
    wrong: Any = None
    with pytest.raises(TypeError, match=r"^offset must be an integer, got None"):
        masks.causal(wrong)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "uint32"])
def test_centres_of_few_bits_do_not_wrap_around(dtype):
    q = jnp.ones((1, 8, 1, 4))
    centres = np.arange(8, dtype=dtype)
    for sides in ((3, 2), (200, 200)):
        got = jattn.weights(q, q, q, mask=masks.around(centres, *sides))
        np.testing.assert_array_equal(got, jattn.weights(q, q, q, mask=masks.window(*sides)))


@pytest.mark.parametrize("implementation", ["reference", "blockwise"])
def test_sums_of_positions_do_not_wrap_below(implementation):
    q, k, v = (jax.random.normal(jax.random.key(n), (1, 8, 2, 4)) for n in range(3))
    sees_all = masks.window(jnp.int32(2**31 - 1), None)
    blocks = (4, 4) if implementation == "blockwise" else None
    for first in (5, jnp.int32(5), jnp.array([5])):
        got = jattn.attention(
            q, k, v, mask=sees_all, positions={"s": first}, implementation=implementation, blocks=blocks
        )
        np.testing.assert_allclose(got, jattn.attention(q, k, v), atol=1e-6)
    assert not jattn.weights(q, k, v, mask=masks.window(jnp.int32(-(2**31)), None)).any()
