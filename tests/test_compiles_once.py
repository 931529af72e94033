"""A second call of the same shapes traces nothing, whatever is made anew: terms, seeds, ids, float parameters."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import pytest

import jattn
from jattn import gates, masks, mods, normalizers, scores
from tests.derivatives.problem import floats, integers


def _tilt(score, i, j, slope):
    _traced.append("mod")
    return score - slope * (i - j)


def _odd(i, j):
    _traced.append("mask")
    return (i + j) % 2 == 1


_traced: list[str] = []


def _pieces(n):
    """Made anew at every call; other seeds, ids and float parameters."""
    x = floats(n)
    return {
        "score": scores.dot(x["cap"]),
        "mask": masks.function(_odd)
        | (masks.causal(jnp.asarray(n)) & masks.segments(integers(n)["q_ids"], integers(n)["kv_ids"])),
        "mods": (
            mods.function(_tilt, jattn.operand(x["sinks"], "h")),
            mods.softcap(x["cap"]),
            mods.relative(x["table"]),
        ),
        "gates": (gates.gaussian(x["center"], x["sigma"]),),
        "dropout": gates.dropout(0.5, n),
        "normalizer": normalizers.gumbel(jax.random.key(n), x["cap"]),
    }


@pytest.mark.smoke
def test_no_retrace():
    def use(n):
        x = floats(n)
        of = lambda q, options: jnp.sum(jattn.attention(q, x["k"], x["v"], blocks=(2, 3), **options))
        return of(x["q"], _pieces(n)), jax.grad(of)(x["q"], _pieces(n))

    use(0)
    assert {"mod", "mask"} <= set(_traced)
    _traced.clear()
    use(1)
    assert not _traced


@pytest.mark.smoke
def test_no_retrace_inside_jit():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def use(x, options):
        return jattn.attention(x["q"], x["k"], x["v"], **options)

    for n in range(3):
        use(floats(n), _pieces(n))
