"""Which tiles a line visits: the full ones first, however the lists are held."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from jattn_kernels.gpu.lists import LineLists


def _tiles(visits):
    return [int(visits.tile(jnp.int32(n))) for n in range(int(visits.total))]


def test_without_lists_every_line_visits_every_tile():
    lists = LineLists("all", 1, 1, 5)
    visits = lists.visits((), 3, 2, 1)
    assert lists.arrays == 0 and _tiles(visits) == [0, 1, 2, 3, 4]
    assert visits.kinds() == [(False, 0, visits.full)]  # none of them looks at the mask


@pytest.mark.parametrize(("batch", "heads"), [(1, 1), (2, 1), (1, 3), (2, 3)])
def test_a_line_reads_the_list_of_its_element_and_head(batch, heads):
    lines, longest = 4, 6
    tiles = np.random.default_rng(0).integers(0, 9, (batch, heads, lines, longest)).astype(np.int32)
    full, partial = (np.random.default_rng(n).integers(0, 4, tiles.shape[:3]).astype(np.int32) for n in (1, 2))
    lists = LineLists("list", batch, heads, 9)
    assert lists.arrays == 3
    for b, h, line in ((0, 0, 0), (3, 2, 3), (4, 1, 2)):
        at = b % batch, h if heads > 1 else 0, line
        held: Any = [jnp.asarray(x) for x in (tiles, full, partial)]
        visits = lists.visits(held, b, h, line)
        assert int(visits.full) == full[at] and int(visits.total) == full[at] + partial[at]
        assert _tiles(visits) == tiles[at][: full[at] + partial[at]].tolist()


@pytest.mark.parametrize(
    ("visited", "first", "full", "partial", "order"),
    [
        (2, 4, 3, 3, [4, 5, 6, 2, 3, 7]),
        (2, 2, 2, 2, [2, 3, 4, 5]),
        (1, 4, 2, 3, [4, 5, 1, 2, 3]),
        (3, 0, 0, 3, [3, 4, 5]),
        (0, 0, 0, 0, []),
    ],
)
def test_a_run_visits_its_full_tiles_and_then_those_around_them(visited, first, full, partial, order):
    """Where none is full `first` counts for nothing but that none of the others comes after it."""
    numbers: Any = [
        jnp.full((1, 1, 1), x, jnp.int32) for x in (visited, visited + partial if not full else first, full, partial)
    ]
    lists = LineLists("runs", 1, 1, 9)
    assert lists.arrays == 4
    assert _tiles(lists.visits(numbers, 0, 0, 0)) == order


@pytest.mark.parametrize(
    ("some", "masked"), [((True, True), [False, True]), ((False, True), [True]), ((True, False), [False])]
)
def test_kinds_that_no_line_has_need_no_code(some, masked):
    lists = LineLists("list", 1, 1, 4, some)
    arrays: Any = [jnp.zeros((1, 1, 1, 4), jnp.int32), *[jnp.full((1, 1, 1), 2, jnp.int32)] * 2]
    kinds = lists.visits(arrays, 0, 0, 0).kinds()
    assert [x[0] for x in kinds] == masked
    assert all((int(x[1]), int(x[2])) == ((2, 4) if x[0] else (0, 2)) for x in kinds)
