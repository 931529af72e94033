"""Lists of work: the strips of all tiles are the mask, and a grid is as long as its work."""

from __future__ import annotations

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from jattn_kernels.tiles.work import Frame
from jattn_kernels.tpu.sizes import TileSizes

import jattn
from jattn import masks
from jattn.backends.pallas import work as work_lists


@st.composite
def static_masks(draw):
    one = st.one_of(
        st.builds(masks.causal, st.integers(-300, 300)),
        st.builds(masks.window, st.integers(0, 400), st.integers(0, 400)),
        st.builds(masks.prefix, st.integers(0, 700)),
        st.builds(masks.dilated, st.integers(1, 3)),
    )
    left, right = draw(one), draw(one)
    return draw(st.sampled_from([left, left & right, left | right, ~left]))


def visited(work, frame, direction, i):
    """What query tile i visits: chunk, key tile, and the strips of the tile."""
    for c in range(work.shape.steps if direction == "forward" else frame.chunks):
        scalars = [x[c] for x in work.scalars] if work.by_chunk else work.scalars
        chunk = work.shape.chunk(scalars, 0, 0, i, c) if direction == "forward" else c
        visits = work.shape.visits(scalars, 0, 0, i, c, None if direction == "forward" else c)
        for n in range(int(visits.full)):
            yield int(chunk), int(visits.tile(n, False)[0]), frame.sizes.whole(False, direction == "backward")
        for n in range(int(visits.partial)):
            tile, pattern = (int(x) for x in visits.tile(n, True))
            yield int(chunk), tile, work.patterns[pattern]


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
    static_masks(), st.integers(1, 700), st.integers(1, 700), st.sampled_from([128, 256, 512]),
    st.sampled_from([128, 256, 512]), st.integers(1, 3), st.sampled_from(["forward", "backward"]), st.booleans(),
)  # fmt: skip
def test_the_strips_of_all_tiles_are_the_mask(mask, t, s, query, key, per_chunk, direction, room):
    """Every pair that attends is in one strip; what a strip calls unmasked attends.  So where lists have no `room`."""
    sizes = TileSizes(query, key, 128, key * per_chunk)
    frame = Frame(t, s, sizes)
    work = work_lists.static_work.__wrapped__(mask, frame, direction, room)
    padded = frame.query_tiles * query, frame.key_tiles * key
    count, unmasked = np.zeros(padded, int), np.zeros(padded, bool)

    def lay(i, j, strips):
        for strip in strips:
            for stretch in strip.stretches:
                row, column = (strip, stretch) if direction == "forward" else (stretch, strip)
                at = slice(i + row.at, i + row.at + row.size), slice(j + column.at, j + column.at + column.size)
                count[at] += 1
                unmasked[at] |= not stretch.masked

    for i in range(frame.query_tiles):
        for chunk, tile, strips in visited(work, frame, direction, i):
            assert tile // per_chunk == chunk
            lay(i * query, tile * key, strips)
    attends = np.asarray(mask(np.arange(t)[:, None], np.arange(s)[None]))
    assert count.max(initial=0) <= 1
    assert (count[:t, :s][attends] == 1).all()
    assert attends[unmasked[:t, :s]].all()
    assert not unmasked[:, s:].any()


def test_a_diagonal_tile_does_about_half_its_products():
    sizes = TileSizes(1024, 1024, 512, 4096)
    work = work_lists.static_work(masks.causal(), Frame(4096, 4096, sizes), "forward")
    assert len(work.patterns) == 1
    pairs = sum(strip.size * stretch.size for strip in work.patterns[0] for stretch in strip.stretches)
    assert pairs <= 0.63 * 1024**2


def test_the_grid_is_only_as_long_as_the_work():
    """Chunks of keys that no query tile of a window sees at once are no steps of the grid."""
    frame = Frame(4096, 4096, TileSizes(256, 256, 256, 512))
    work = work_lists.static_work(masks.causal() & masks.window(left=300), frame, "forward")
    assert frame.chunks == 8
    assert work.shape.steps == 2


def test_segments_known_at_run_time_skip_tiles():
    ids = jnp.repeat(jnp.arange(4), 256)[None]
    frame = Frame(1024, 1024, TileSizes(256, 256, 256, 1024))
    q_ids = jattn.operand(ids, "bt")
    mask = masks.Segments(q_ids, jattn.operand(ids, "bs"))
    tiles, counts, _ = jax.jit(lambda: work_lists.work_of(mask, frame, "forward").scalars)()
    assert counts.reshape(-1, 3).tolist() == [[0, 1, 0]] * 4
    assert tiles.reshape(4, 4)[:, 0].tolist() == [0, 1, 2, 3]
    (ends,) = jax.jit(lambda: work_lists.work_of(mask, frame, "forward", listed=False).scalars)()
    assert ends.reshape(-1, 5).tolist() == [[n, n, n + 1, n + 1, 0] for n in range(4)]
