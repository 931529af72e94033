"""Natural logarithms and the units of the scores: from one to the other and back without loss."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from jattn_kernels.tiles.functions import LOG2E, TileFunctions


def _functions(natural: bool) -> TileFunctions:
    return TileFunctions(lambda *_: None, None, natural, None, (0, 1))


LSE = jnp.array([0.0, 1.5, -20.25, 3e4, -1e9], jnp.float32)
REST = jnp.array([0.0, 1e-8, -3e-7, 1e-3, 1.25], jnp.float32)


def test_where_scores_are_natural_there_is_nothing_to_turn():
    functions = _functions(True)
    lse, rest = functions.natural_lse(LSE, REST)
    assert lse is LSE and rest is REST
    lse, share = functions.lse_and_share(LSE, REST)
    assert lse is LSE
    np.testing.assert_allclose(share, np.exp(-np.asarray(REST, np.float64)), rtol=1e-6)


def test_in_units_of_log2_both_parts_are_turned():
    functions = _functions(False)
    whole = np.asarray(LSE, np.float64) + np.asarray(REST, np.float64)
    for (x, y), factor in ((functions.natural_lse(LSE, REST), 1 / LOG2E),):
        np.testing.assert_allclose(np.asarray(x, np.float64) + np.asarray(y, np.float64), whole * factor, rtol=1e-13)
    lse, share = functions.lse_and_share(LSE, REST)
    left = whole * LOG2E - np.asarray(lse, np.float64)  # what float32 has no place for
    np.testing.assert_allclose(share, 2.0**-left, rtol=1e-6)


@pytest.mark.parametrize("natural", [True, False])
def test_weights_of_scores_are_exact_however_large_their_lse(natural):
    """exp(score - lse) by the lse that is held and the share of what it lacks: of n equal scores 1 / n."""
    functions = _functions(natural)
    score, n = jnp.float32(-1e9), 3
    lse, share = functions.lse_and_share(score, jnp.float32(np.log(n)))
    power = jnp.exp if natural else jnp.exp2
    units = score if natural else functions.lse_and_share(score, jnp.float32(0))[0]
    lost = 0.0 if natural else float(score) * LOG2E - float(units)
    weight = float(power(units - lse)) * float(share) * 2.0**lost
    assert weight == pytest.approx(1 / n, rel=1e-5)


def test_minus_infinity_stays_what_it_is():
    for natural in (True, False):
        lse, rest = _functions(natural).natural_lse(jnp.float32(-jnp.inf), jnp.float32(0))
        assert lse == -jnp.inf and rest == 0
        lse, share = _functions(natural).lse_and_share(jnp.float32(-jnp.inf), jnp.float32(0))
        assert lse == -jnp.inf and share == 1
