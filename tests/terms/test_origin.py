"""Pieces of a call, each at its positions, are the call: for every kind of term, wherever the pieces' borders lie."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import Operand, gates, masks, mods, normalizers, operand
from jattn._terms import Offsets, Origin
from tests.cases import Draw, Sizes
from tests.evaluate import QUICK
from tests.tolerances import TOLERANCES, assert_close

WHOLE = Sizes(b=2, t=16, s=24, h=4, g=2)
PIECES = {  # of positions that are known, each of which compiles a program of its own, and of those that are not
    "static": {"b": 2, "t": 8, "s": 12, "h": 4},
    "traced": {"b": 1, "t": 8, "s": 12, "h": 2},
}
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


def _cut(tree, start, sizes):
    """The operands' parts for a piece."""

    def part(x):
        if not isinstance(x, Operand):
            return x
        array = x.array
        for dim, axis in enumerate(x.axes):
            array = jax.lax.dynamic_slice_in_dim(array, start[axis], sizes[axis], dim)
        return Operand(array, x.axes)

    return jax.tree.map(part, tree, is_leaf=lambda x: isinstance(x, Operand))


def _in_pieces(arrays, sizes, attend):
    """(out, lse) of all pieces, put together: those over other keys merged, the others side by side."""
    (q, k, v), group = arrays, WHOLE.h // WHOLE.g
    part = lambda x, *axes: x[tuple(slice(n, n + size) for n, size in axes)]

    def piece(b, t, s, h):
        batch = b, sizes["b"]
        query = part(q, batch, (t, sizes["t"]), (h, sizes["h"]))
        key, value = (part(x, batch, (s, sizes["s"]), (h // group, sizes["h"] // group)) for x in (k, v))
        return attend(query, key, value, {"b": b, "t": t, "s": s, "h": h})

    starts = {a: range(0, getattr(WHOLE, a), n) for a, n in sizes.items()}
    join = lambda parts, axis: jax.tree.map(lambda *x: jnp.concatenate(x, axis), *parts)
    over_keys = lambda b, t, h: jattn.merge(*(piece(b, t, s, h) for s in starts["s"]))
    heads = lambda b, t: join([over_keys(b, t, h) for h in starts["h"]], 2)
    return join([join([heads(b, t) for t in starts["t"]], 1) for b in starts["b"]], 0)


def _run(q, k, v, options, **fixed):
    return jattn.attention(q, k, v, **options, implementation="blockwise", blocks=(4, 4), **fixed)


STATIC = ("causal", "segments", "blocks-heads", "relative", "gates")


@pytest.mark.parametrize(("known", "name"), [*(("traced", x) for x in CASES), *(("static", x) for x in STATIC)])
def test_pieces_at_their_positions_are_the_whole(known, name):
    x = Draw(WHOLE, jnp.float32, 0)
    arrays, options, sizes = x.inputs(), CASES[name](x), PIECES[known]
    wanted = jattn.attention(*arrays, **options, return_lse=True, implementation="reference")

    def attend(q, k, v, start):
        return _run(q, k, v, _cut(options, start, sizes), return_lse=True, positions=start)

    traced = jax.jit(attend, compiler_options=QUICK)
    static = lambda *x, start: jax.jit(lambda q, k, v: attend(q, k, v, start), compiler_options=QUICK)(*x)
    run = traced if known == "traced" else lambda q, k, v, start: static(q, k, v, start=start)
    for one, other, what in zip(_in_pieces(arrays, sizes, run), wanted, ("out", "lse"), strict=True):
        assert_close(one, other, TOLERANCES["float32"].value, what)


def _visits(fn, q, k, v):
    """Which key blocks of 4 each query block of 4 visits, seen from where a NaN shows up."""
    found = []
    for n in range(0, k.shape[1], 4):
        out = np.isnan(fn(q, k, v.at[:, n : n + 4].set(jnp.nan)))
        found.append(out.any(3).reshape(len(q), -1, 4, q.shape[2]).any(2))
    return np.stack(found, -1)


@pytest.mark.parametrize("name", ["causal", "window", "segments", "blocks", "blocks-heads"])
def test_a_piece_skips_the_blocks_that_the_whole_does(name):
    x = Draw(WHOLE, jnp.float32, 0)
    (q, k, v), options = x.inputs(), CASES[name](x)
    piece = lambda q, k, v, t: _run(
        q, k, v, _cut(options, {"b": 0, "t": t, "s": 0, "h": 0}, {**PIECES["static"], "s": 24}), positions=t
    )
    whole = _visits(jax.jit(lambda q, k, v: _run(q, k, v, options)), q, k, v)[:, 2:]
    assert whole.any()
    assert not whole.all()
    traced = jax.jit(piece)
    np.testing.assert_array_equal(_visits(lambda *x: traced(*x, 8), q[:, 8:], k, v), whole)
    np.testing.assert_array_equal(_visits(jax.jit(lambda q, k, v: piece(q, k, v, 8)), q[:, 8:], k, v), whole)


def test_pieces_under_vmap():
    x = Draw(WHOLE, jnp.float32, 0)
    (q, k, v), options = x.inputs(), CASES["relative"](x)
    pieces = jnp.stack([q[:, :8], q[:, 8:]])
    out = jax.vmap(lambda q, t: _run(q, k, v, options, positions=t))(pieces, jnp.array([0, 8]))
    wanted = _run(q, k, v, options)
    assert_close(jnp.concatenate(list(out), 1), wanted, TOLERANCES["float32"].value)


@pytest.mark.parametrize(
    ("positions", "error", "words"),
    [
        ({"x": 3}, ValueError, 'axes of "bhts"'),
        (np.arange(3), ValueError, r"\[b\] = \[2\]"),
        (2.5, TypeError, "positions must be an integer"),
        ({"h": -1}, ValueError, ">= 0"),
        ({"t": 12}, ValueError, "masks.blocks: .* must cover t = 28"),
        ({"h": 1}, ValueError, "have h = 5 first"),
    ],
)
def test_wrong_positions(positions, error, words):
    x = Draw(WHOLE, jnp.float32, 0)
    with pytest.raises(error, match=words):
        jattn.attention(*x.inputs(), **CASES["blocks-heads"](x), positions=positions)


def test_a_call_of_its_own_has_the_first_of_everything():
    here = Origin()
    assert here.first_head == 0 and here.h is None
    b, h = here.indices(2, 3)
    assert (b.axes, h.axes) == ("b", "h")
    assert (b.array.tolist(), h.array.tolist()) == ([0, 1], [0, 1, 2])


def test_a_part_counts_on_from_where_it_stands():
    b, h = Origin(b=4, h=jattn.operand(jnp.int32(6))).indices(1, 2)
    assert b.array.tolist() == [4] and isinstance(b.array, np.ndarray)
    assert h.array.tolist() == [6, 7] and isinstance(h.array, jax.Array)  # known at run time alone
    assert Origin(h=0).first_head == 0 and Origin(h=0) != Origin()  # of a part, which may have fewer than all


def test_two_origins_of_the_same_place_are_one_program():
    one, other = (jax.tree.structure(Origin(b=1, offsets=Offsets(2, 3))) for _ in range(2))
    assert one == other and hash(one) == hash(other)
    assert one != jax.tree.structure(Origin(b=1, offsets=Offsets(2, 4)))
