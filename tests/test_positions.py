"""Pieces of a call, each at its positions, are the call: for every kind of term, wherever the pieces' borders lie."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import Operand, gates, masks, mods, normalizers, operand
from tests.cases import Draw, Sizes
from tests.problems import problem
from tests.tolerances import assert_close

WHOLE = Sizes(b=2, t=16, s=24, h=4, g=2)
PIECE = {"b": 1, "t": 8, "s": 12, "h": 2}
LAYOUT = np.random.default_rng(3).random((4, 6, 6)) < 0.5

CASES = {
    "causal": lambda x: {"mask": masks.causal(6)},
    "window": lambda x: {"mask": masks.window(7, 2) | masks.prefix(2)},
    "dilated": lambda x: {"mask": masks.dilated(3) & masks.causal(8)},
    "lengths": lambda x: {"mask": masks.lengths(x.integers("b", 4, 24), x.integers("b", 4, 17))},
    "segments": lambda x: {"mask": masks.segments(x.documents("bt"), x.documents("bs")) & ~masks.causal(-3)},
    "blocks": lambda x: {"mask": masks.blocks(LAYOUT[0], 4) & masks.causal(8)},
    "blocks-heads": lambda x: {"mask": masks.blocks(LAYOUT, 4)},
    "function": lambda x: {"mask": masks.function(lambda i, j: (i + 2 * j) % 5 != 3)},
    "function-operand": lambda x: {
        "mask": masks.function(lambda i, j, n: (i - j) % n != 1, operand(x.integers("b", 2, 5), "b"))
    },
    "relative": lambda x: {"mods": mods.relative(x.normal("h", 8)), "mask": masks.causal(8)},
    "relative-held": lambda x: {"mods": _relative_held(x)},
    "mods": lambda x: {
        "mods": (
            mods.alibi(x.normal("h", scale=0.3)),
            mods.function(lambda s, i, j, c: s + c * jnp.sin(i - 3 * j), operand(x.normal("bhs"), "bhs")),
        )
    },
    "gates": lambda x: {
        "gates": (
            gates.gaussian(x.normal("bt", scale=4, shift=12), 5.0),
            gates.function(lambda w, i, j: w / (1 + abs(i - j))),
        ),
        "dropout": gates.dropout(0.3, 5),
    },
    "gumbel": lambda x: {"normalizer": normalizers.gumbel(jax.random.key(4), x.number(0.7)), "mods": _bias(x)},
}


def _relative_held(x: Draw):
    width = jnp.asarray(3)
    return mods.relative(x.normal("h", 8), lambda relative: jnp.clip(relative // width, -4, 3) + 4)


def _bias(x: Draw):
    return mods.bias(x.normal("hts"), "hts")


def _cut(tree, start):
    """The operands' parts for a piece."""

    def part(x):
        if not isinstance(x, Operand):
            return x
        for dim, axis in enumerate(x.axes):
            x = Operand(jax.lax.dynamic_slice_in_dim(x.array, start[axis], PIECE[axis], dim), x.axes)
        return x

    return jax.tree.map(part, tree, is_leaf=lambda x: isinstance(x, Operand))


def _whole(fn, arrays, options, **fixed):
    q, k, v = arrays
    return fn(q, k, v, return_lse=True, **fixed, **options)


def _in_pieces(arrays, options, run):
    """(out, lse) of all pieces, put together: those over other keys merged, the others side by side."""
    (q, k, v), group = arrays, WHOLE.h // WHOLE.g

    def piece(b, t, s, h):
        start = {"b": b, "t": t, "s": s, "h": h}
        of = lambda x, axes: x[tuple(slice(n, n + size) for n, size in axes)]
        query = of(q, ((b, PIECE["b"]), (t, PIECE["t"]), (h, PIECE["h"])))
        key, value = (of(x, ((b, PIECE["b"]), (s, PIECE["s"]), (h // group, PIECE["h"] // group))) for x in (k, v))
        return run(query, key, value, _cut(options, start), start)

    starts = {a: range(0, getattr(WHOLE, a), n) for a, n in PIECE.items()}
    join = lambda parts, axis: jax.tree.map(lambda *x: jnp.concatenate(x, axis), *parts)
    over_keys = lambda b, t, h: jattn.merge(*(piece(b, t, s, h) for s in starts["s"]))
    heads = lambda b, t: join([over_keys(b, t, h) for h in starts["h"]], 2)
    return join([join([heads(b, t) for t in starts["t"]], 1) for b in starts["b"]], 0)


def _attend(static: bool, **fixed):
    def run(q, k, v, options, start):
        return jattn.attention(q, k, v, **options, return_lse=True, positions=start, **fixed)

    if not static:
        return jax.jit(run)
    return lambda q, k, v, options, start: jax.jit(lambda *x: run(*x, start))(q, k, v, options)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("known", ["static", "traced"])
def test_pieces_at_their_positions_are_the_whole(name, known):
    x = Draw(WHOLE, jnp.float32, 0)
    arrays, options = x.inputs(), CASES[name](x)
    options = jax.tree.map(lambda x: x, options)
    wanted = jattn.attention(*arrays, **options, return_lse=True, implementation="reference")
    got = _in_pieces(arrays, options, _attend(known == "static", implementation="blockwise", blocks=(4, 4)))
    for one, other, what in zip(got, wanted, ("out", "lse"), strict=True):
        assert_close(one, other, 2e-6, what)


def _spoilt(fn, q, k, v):
    """Which key blocks of 4 each query block of 4 visits, seen from where a NaN shows up."""
    found = []
    for n in range(0, k.shape[1], 4):
        out = fn(q, k, v.at[:, n : n + 4].set(jnp.nan))
        found.append(np.isnan(out).any((2, 3)).reshape(len(q), -1, 4).any(-1))
    return np.stack(found, -1)


@pytest.mark.parametrize("name", ["causal", "window", "segments", "blocks", "blocks-heads"])
def test_blocks_are_skipped_wherever_a_piece_stands(name):
    x = Draw(WHOLE, jnp.float32, 0)
    (q, k, v), options = x.inputs(), CASES[name](x)
    fixed = {"implementation": "blockwise", "blocks": (4, 4)}
    whole = _spoilt(jax.jit(lambda q, k, v: jattn.attention(q, k, v, **options, **fixed)), q, k, v)
    cut = lambda t: jax.tree.map(
        lambda x: Operand(jnp.take(x.array, t + jnp.arange(8), x.axes.index("t")), x.axes)
        if isinstance(x, Operand) and "t" in x.axes
        else x,
        options,
        is_leaf=lambda x: isinstance(x, Operand),
    )
    run = lambda q, k, v, t: jattn.attention(q, k, v, **cut(t), **fixed, positions=t)
    assert whole.any()
    assert not whole.all()
    np.testing.assert_array_equal(_spoilt(lambda *x: jax.jit(run)(*x, 8), q[:, 8:], k, v), whole[:, 2:])
    np.testing.assert_array_equal(
        _spoilt(jax.jit(lambda *x: run(*x, 8)), q[:, 8:], k, v), whole[:, 2:]
    )
