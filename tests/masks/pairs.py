"""Which pairs a mask lets attend, and what it says of whole blocks, against a look at every pair."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import _terms
from jattn._call import checks
from jattn._terms import Origin, block_tables
from jattn._terms.block_tables import Answer, Tiling
from tests.cases import Sizes

SIZES = Sizes()
B, T, S, H = SIZES.b, SIZES.t, SIZES.s, SIZES.h
I, J = np.arange(T)[:, None], np.arange(S)[None]
SHORT, LONG = np.array([0, 5]), np.array([17, 11])
per_batch = lambda x: np.asarray(x)[:, None, None, None]

every_tiling = pytest.mark.parametrize("tilings", [(4, 5), (13, 1)])


def seen(mask, b=B, t=T, s=S, h=H) -> np.ndarray:
    """Which pairs attend, `[b, h, t, s]`, as attention itself has it."""
    q, k = jnp.zeros((b, t, h, 1)), jnp.zeros((b, s, h, 1))
    return np.asarray(jattn.weights(q, k, k, mask=mask)) > 0


def check_formula(mask, formula) -> None:
    """Each mask is its formula."""
    np.testing.assert_array_equal(seen(mask), np.broadcast_to(formula, (B, H, T, S)))


# Whole blocks


def _placed(mask, sizes=SIZES):
    mask = checks.place(mask, {a: getattr(sizes, a) for a in "bhts"})
    return mask.bound(*Origin().indices(sizes.b, sizes.h))


def _pairs(mask, sizes=SIZES) -> np.ndarray:
    """`[b, h, t, s]`: every pair of every head, from the operands' entries for it."""
    arrays, signature = _terms.split(mask)

    def cut(array, axes, b, h):
        array = np.asarray(array)
        for axis, index in (("b", b), ("h", h)):
            array = array[index] if axis in axes else array
        kept = [getattr(sizes, a) if a in axes else 1 for a in "ts"] if set("ts") & set(axes) else []
        return array.reshape(kept)

    i, j = np.arange(sizes.t)[:, None], np.arange(sizes.s)[None]
    heads = [
        [
            signature.fill([cut(x, a, b, h) for x, a in zip(arrays, signature.axes, strict=True)])(i, j)
            for h in range(sizes.h)
        ]
        for b in range(sizes.b)
    ]
    return np.asarray(heads)


def brute(mask, query: Tiling, key: Tiling, sizes=SIZES) -> Answer:
    """Answers from a look at every pair."""
    got = _pairs(mask, sizes)
    cut = lambda x, tiling, n, axis: x.take(range(int(tiling.start(n)), int(tiling.start(n)) + tiling.block), axis)
    tiles = [[cut(cut(got, query, m, 2), key, n, 3) for n in range(key.count)] for m in range(query.count)]
    some, every = (np.array([[f(x, axis=(2, 3)) for x in row] for row in tiles]) for f in (np.any, np.all))
    return Answer(*(np.moveaxis(x, (0, 1), (2, 3)) for x in (some, every)))


def check_answers(mask, query: Tiling, key: Tiling, exact=False) -> None:
    """`some` and `every` must be on the safe side, or exact."""
    mask = _placed(mask)
    got, wanted = block_tables.answers(mask, query, key), brute(mask, query, key)
    some, every = (np.broadcast_to(x, wanted.some.shape) for x in got)
    assert not (wanted.some & ~some).any(), "a block that has pairs would be skipped"
    assert not (every & ~wanted.every).any(), "a block that has holes would go unmasked"
    if exact:
        np.testing.assert_array_equal(some, wanted.some)
        last = key.count if key.whole else key.count - 1
        np.testing.assert_array_equal(every[..., :last], wanted.every[..., :last])
    if not key.whole:
        assert not every[..., -1].any(), "the last key block repeats keys: it must look at positions"


def tilings_of(blocks: tuple[int, int]) -> tuple[Tiling, Tiling]:
    """The tilings of the queries and keys of `SIZES` by blocks of so many rows and columns."""
    return Tiling(T, blocks[0]), Tiling(S, blocks[1])


def table(mask, query=(16, 4), key=(16, 4), batch=1, heads=1) -> Any:
    return block_tables.table(mask, Tiling(*query), Tiling(*key), batch, heads)
