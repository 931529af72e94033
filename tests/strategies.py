"""What hypothesis draws: sizes, nested masks, mods, gates, and tiles that divide nothing."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from jattn import gates, masks, mods, operand
from tests.cases import Draw, Sizes

LENGTHS = st.sampled_from([1, 2, 3, 7, 8, 13, 17])
WIDTHS = st.sampled_from([1, 2, 3, 5])
TILES = st.tuples(*[st.integers(1, 20)] * 2)


@st.composite
def sizes(draw) -> Sizes:
    groups = draw(st.integers(1, 3))
    return Sizes(
        b=draw(st.integers(1, 3)),
        t=draw(LENGTHS),
        s=draw(LENGTHS),
        h=groups * draw(st.integers(1, 3)),
        g=groups,
        d=draw(WIDTHS),
        e=draw(WIDTHS),
    )


def static_masks(x: Sizes):
    """Masks that are known while tracing."""
    near = st.integers(-x.s - 2, x.s + 2)

    def layout(size, seed):
        flags = np.random.default_rng(seed).random((-(-x.t // size), -(-x.s // size))) < 0.6
        return masks.blocks(flags, size)

    return st.one_of(
        st.builds(masks.causal, near),
        st.tuples(st.none() | near, st.none() | near)
        .filter(lambda sides: sides[0] is None or sides[1] is None or sides[0] + sides[1] >= 0)
        .map(lambda sides: masks.window(*sides)),
        st.builds(masks.prefix, st.integers(0, x.s + 1)),
        st.builds(masks.dilated, st.integers(1, 5)),
        st.builds(layout, st.integers(1, 5), st.integers(0, 99)),
        st.builds(lambda a, m: masks.function(lambda i, j: (a * i + j) % m != 0), st.integers(0, 3), st.integers(2, 5)),
    )


def traced_masks(x: Sizes):
    """Masks whose arrays are known at run time."""

    def drawn(make):
        return st.builds(lambda seed: make(Draw(x, jnp.float32, seed)), st.integers(0, 99))

    return st.one_of(
        drawn(lambda y: masks.segments(y.documents("bt"), y.documents("bs"))),
        drawn(lambda y: masks.around(y.normal("bht", scale=3, shift=y.s / 2), 1, 2)),
        drawn(lambda y: masks.segments(y.integers("t", 0, 3), y.integers("bs", 0, 3))),
        drawn(lambda y: masks.prefix(y.integers("b", 0, y.s + 1))),
        drawn(lambda y: masks.lengths(y.integers("b", 0, y.s + 1), y.integers("b", 0, y.t + 1))),
        drawn(lambda y: masks.causal(y.integers("", -3, y.s))),
        drawn(lambda y: masks.blocks(y.flags(y.h, -(-y.t // 3), -(-y.s // 3)), 3)),
        drawn(lambda y: masks.dense(y.flags(y.b, 1, 1, y.s))),
        drawn(lambda y: masks.function(lambda i, j, n: abs(i - j) < n, operand(y.integers("h", 0, 9), "h"))),
    )


def algebra(leaves):
    """Nested &, | and ~ of masks."""
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.builds(lambda a, b: a & b, inner, inner),
            st.builds(lambda a, b: a | b, inner, inner),
            st.builds(lambda a: ~a, inner),
        ),
        max_leaves=4,
    )


@st.composite
def options(draw, x: Sizes, dtype) -> dict:
    """Options of attention, of every kind that composes."""
    y = Draw(x, dtype, draw(st.integers(0, 99)))
    got = {}
    if draw(st.booleans()):
        got["mask"] = draw(algebra(static_masks(x) | traced_masks(x)))
    axes = draw(st.sampled_from(["", "h", "bs", "ht", "bhts"]))
    menu = {
        "softcap": lambda: mods.softcap(y.number(2.0)),
        "alibi": lambda: mods.alibi(y.normal("h", scale=0.3)),
        "relative": lambda: mods.relative(y.normal("h", 6)),
        "bias": lambda: mods.bias(y.normal(axes), axes),
    }
    got["mods"] = tuple(menu[name]() for name in draw(st.lists(st.sampled_from(sorted(menu)), max_size=2)))
    if draw(st.booleans()):
        got["gates"] = (
            gates.gaussian(y.normal("bt", scale=3), 4.0),
            gates.dropout(0.3, draw(st.integers(0, 2**32 - 1))),
        )
    if draw(st.booleans()):
        got["sinks"] = y.normal("h")
    return got
