"""The work of halves of the keys: every chunk that is seen once, in order, and an item where nothing is seen."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jattn_kernels.tiles.work import EMPTY, FULL, PARTIAL
from jattn_kernels.tpu.decode.items import item_at, items_of, parts_of

random = np.random.default_rng(0)
SOME = random.random((4, 7)) < 0.5
SOME[2] = False  # an element that sees nothing
EVERY = SOME & (random.random(SOME.shape) < 0.5)


def _wanted(halves):
    """For each half the items in order: element, chunk, kind."""
    wanted = []
    for half in range(halves):
        mine = []
        for b, row in enumerate(SOME):
            own = [c for c in range(len(row)) if row[c] and c % halves == half]
            mine += [(b, c, FULL if EVERY[b, c] else PARTIAL) for c in own] or [(b, 0, EMPTY)]
        wanted.append(mine)
    return wanted


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("halves", [1, 2])
def test_each_chunk_that_is_seen_once_in_order(halves, late):
    if late:  # known at run time alone
        items, counts = jax.jit(lambda some, every: items_of(some, every, halves)[:2])(SOME, EVERY)
    else:
        items, counts, partial, full = items_of(SOME, EVERY, halves)
        assert partial and full and items_of(SOME, EVERY, halves).longest == max(map(len, _wanted(halves)))
    flat: Any = jnp.asarray(items).reshape(-1)  # which a kernel reads as a reference
    for half, wanted in enumerate(_wanted(halves)):
        assert counts[half] == len(wanted)
        got = [tuple(map(int, parts_of(item_at(flat, halves, half, n)))) for n in range(len(wanted) + 1)]
        assert got[:-1] == wanted
        assert got[-1][:2] == wanted[-1][:2]  # the last chunk stays where it is


def test_kinds_that_there_are_not_are_known_while_tracing():
    assert items_of(SOME, SOME, 1)[2:] == (False, True)
    assert items_of(SOME, SOME & False, 1)[2:] == (True, False)
