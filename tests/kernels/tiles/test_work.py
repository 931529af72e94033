"""Lists of key tiles for each query tile, and runs of them: both visit what is to be visited, the full tiles first."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jattn_kernels.tiles import work
from jattn_kernels.tiles.work import Answers, Frame, Lists, Runs
from jattn_kernels.tpu.sizes import TileSizes

NQ, NK, PER = 5, 7, 2
SIZES = TileSizes(128, 128, 128, PER * 128)
LINES, CHUNKS = 3, -(-NK // PER)


def _answers(seed: int, xp: Any = np, every: float = 0.5) -> Answers:
    random = np.random.default_rng(seed)
    some = random.random((LINES, NQ, NK)) < 0.6
    some[0, 1] = False  # a query tile that visits nothing
    full = some & (random.random(some.shape) < every)
    return Answers(
        xp.asarray(some), xp.asarray(full), xp.asarray(random.integers(0, 4, some.shape, np.int32)), LINES, 1
    )


def _visited(shape: Any, scalars: Any, b: int, i: int, chunk_of: Any) -> tuple[list[int], dict[int, int]]:
    """Of a query tile the full key tiles, and the partial ones with their patterns."""
    full, partial = [], {}
    for c in range(shape.steps):
        visits = shape.visits(scalars, b, 0, i, c)
        chunk = int(shape.chunk(scalars, b, 0, i, c))
        for n in range(int(visits.full)):
            tile = int(visits.tile(n, False)[0])
            assert chunk_of(tile) == chunk  # keys that are in fast memory
            full.append(tile)
        for n in range(int(visits.partial)):
            tile, pattern = (int(x) for x in visits.tile(n, True))
            assert chunk_of(tile) == chunk
            partial[tile] = pattern
    return full, partial


@pytest.mark.parametrize("xp", [np, jnp], ids=["NumPy", "JAX"])
@pytest.mark.parametrize("seed", range(3))
def test_lists_are_the_tiles_that_are_to_be_visited(seed, xp):
    answers = _answers(seed, xp)
    scalars = [jnp.asarray(x).reshape(-1) for x in work.lists(answers, NK, CHUNKS, SIZES)]
    shape = Lists(LINES, 1, NQ, NK, CHUNKS, None)
    for b in range(LINES):
        for i in range(NQ):
            full, partial = _visited(shape, scalars, b, i, lambda tile: tile // PER)
            some, every = (np.asarray(x[b, i]) for x in answers[:2])
            assert sorted(full) == np.flatnonzero(every).tolist()
            assert sorted(partial) == np.flatnonzero(some & ~every).tolist()
            assert all(number == answers.number[b, i, tile] for tile, number in partial.items())


def test_lists_of_each_chunk_are_its_own_tiles():
    answers = _answers(0)
    tiles, counts = work.lists_by_chunk(answers, PER, SIZES)
    shape = Lists(LINES, 1, NQ, PER, 1, None)
    for c in range(CHUNKS):
        scalars = [jnp.asarray(x[c]).reshape(-1) for x in (tiles, counts)]
        for i in range(NQ):
            visits = shape.visits(scalars, 2, 0, i, 0, c)
            got = [int(visits.tile(n, False)[0]) for n in range(int(visits.full))]
            got += [int(visits.tile(n, True)[0]) for n in range(int(visits.partial))]
            wanted = np.flatnonzero(answers.some[2, i])
            assert sorted(got) == wanted[wanted // PER == c].tolist()


@pytest.mark.parametrize("chunks", [1, CHUNKS])
@pytest.mark.parametrize("seed", range(3))
def test_runs_visit_no_less_and_never_take_for_full_what_is_not(seed, chunks):
    answers = _answers(seed, every=0.8)
    ends = work.runs(answers)
    np.testing.assert_array_equal(
        ends,
        work.runs(
            Answers(jnp.asarray(answers.some), jnp.asarray(answers.every), jnp.asarray(answers.number), LINES, 1)
        ),
    )
    scalars = [jnp.asarray(np.concatenate([ends, np.zeros((*ends.shape[:2], 1), np.int32)], -1)).reshape(-1)]
    per = NK if chunks == 1 else PER
    shape = Runs(LINES, 1, NQ, per, chunks, chunks, None)
    for b in range(LINES):
        for i in range(NQ):
            visited: set[int] = set()
            full: list[int] = []
            for c in range(chunks):
                visits = shape.visits(scalars, b, 0, i, c, c)
                full += [int(visits.tile(n, False)[0]) for n in range(int(visits.full))]
                visited |= {int(visits.tile(n, True)[0]) for n in range(int(visits.partial))}
            assert not visited & {*full}
            assert {*np.flatnonzero(answers.some[b, i])} <= visited | {*full}
            assert answers.every[b, i, full].all()


def test_a_run_carries_the_patterns_of_its_partial_tiles():
    """Two bits of each, in the order in which they are visited: before the full ones, then after them."""
    patterns = 1 | 2 << work.BITS | 3 << 2 * work.BITS
    scalars = [jnp.array([0, 2, 4, 5, patterns], jnp.int32)]
    visits = Runs(1, 1, 1, 6, 1, 1, None).visits(scalars, 0, 0, 0, 0)
    assert (int(visits.full), int(visits.partial)) == (2, 3)
    assert [int(visits.tile(n, False)[0]) for n in range(2)] == [2, 3]
    assert [tuple(int(x) for x in visits.tile(n, True)) for n in range(3)] == [(0, 1), (1, 2), (4, 3)]


def test_what_is_the_same_everywhere_is_not_read():
    visits = Runs(1, 1, 4, 6, 1, 1, (0, 1, 5, 6, 0)).visits([], 0, 0, 3, 0)
    assert (visits.full, visits.partial) == (4, 2)
    assert jax.tree.leaves(visits.tile(0, False)) == [1, 0]


@pytest.mark.parametrize(("t", "s"), [(1, 1), (128, 256), (129, 257), (700, 300)])
def test_lengths_are_padded_to_what_tiles_and_chunks_divide(t, s):
    frame = Frame(t, s, SIZES)
    assert frame.query_tiles == -(-t // 128) and frame.key_tiles == -(-s // 128) and frame.chunks == -(-s // 256)
    assert frame.padded == {"t": frame.query_tiles * 128, "s": frame.chunks * 256}


@pytest.mark.parametrize("xp", [np, jnp], ids=["NumPy", "JAX"])
def test_kinds_of_rectangles(xp):
    some, every = xp.array([False, True, True, False]), xp.array([False, False, True, True])
    got = work.kind_of(some, every)
    assert got.dtype == np.int8
    assert got.tolist() == [work.EMPTY, work.PARTIAL, work.FULL, work.EMPTY]
