"""What windows and segments say without looking: never more than is true of the pairs themselves."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import masks
from jattn._terms.moved import Moved
from jattn._terms.operand import Operand
from jattn._terms.reach import seen_run, span
from jattn._terms.term import Offsets

IDS = np.array([0, 0, 1, 1, 1, 2, 0])
SHAPES = [(7, 7), (4, 7), (7, 4), (1, 7)]


def _own():
    return masks.segments(IDS)


MASKS = {
    "segments": _own,
    "causal-segments": lambda: masks.causal() & _own(),
    "window-segments": lambda: masks.window(2, 0) & _own(),
    "beside": lambda: masks.window(-1, 3) & _own(),
    "other-ids": lambda: masks.segments(IDS, np.roll(IDS, 3)),
    "equal-ids": lambda: masks.segments(IDS, IDS.copy()),
    "either": lambda: masks.prefix(2) | masks.causal(),
    "either-strict": lambda: masks.prefix(2) | masks.causal(-1),
    "not": lambda: ~_own(),
    "causal": lambda: masks.causal(),
    "causal-late": lambda: masks.causal(-2),
    "window": lambda: masks.window(2, 1),
    "nested": lambda: (masks.causal() | masks.prefix(3)) & _own() & masks.window(4),
}


def _pairs(mask, t, s):
    """The mask by its function, of ids cut to the call's lengths."""
    i, j = np.arange(t)[:, None], np.arange(s)[None]

    def fill(x):
        if isinstance(x, masks.Segments):
            return masks.Segments(jnp.asarray(x.query.array)[:t, None], jnp.asarray(x.key.array)[None, :s], x.own)
        if isinstance(x, Moved):
            return Moved(fill(x.mask), x.offsets)
        if isinstance(x, (masks.And, masks.Or)):
            return type(x)(fill(x.left), fill(x.right))
        return masks.Not(fill(x.mask)) if isinstance(x, masks.Not) else x

    return np.broadcast_to(fill(mask)(jnp.asarray(i), jnp.asarray(j)), (t, s))


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("lead", [0, 2, -1])
def test_what_is_certain_is_true(name, lead):
    mask = MASKS[name]()
    moved = Moved(mask, Offsets(lead)) if lead else mask
    for t, s in SHAPES:
        pairs, near = _pairs(moved, t, s), span(moved)
        if near.shows_all(t, s):
            assert pairs.any(0).all(), (t, s)
        if not near.blind(t, s):
            assert pairs.any(1).all(), (t, s)


def test_a_query_sees_the_key_of_its_own_number_in_its_own_segment():
    for name, (t, s) in itertools.product(["segments", "causal-segments", "window-segments"], SHAPES):
        near = span(MASKS[name]())
        assert near.shows_all(t, s) == (t >= s) and near.blind(t, s) == (t > s)
    assert not span(MASKS["other-ids"]()).shows_all(7, 7)
    assert not span(MASKS["beside"]()).shows_all(7, 7) and span(MASKS["beside"]()).blind(7, 7)


def test_where_queries_stand_only_running_tells():
    """Shards of a sequence have ids of other places than their own, and stand where an operand says."""
    assert not span(Moved(_own(), Offsets(jattn.operand(jnp.int32(0), "")))).shows_all(7, 7)
    assert span(Moved(_own(), Offsets(3))).shows_all(7, 7)


def test_either_of_two_masks_is_enough():
    assert span(masks.causal() | masks.dilated(2)).shows_all(5, 5)
    assert not span(masks.causal(-1) | masks.dilated(2)).pairs_alike


RUNS = {
    "lengths": lambda n: masks.lengths(n),
    "lengths-static": lambda n: masks.lengths(5),
    "prefix-causal": lambda n: masks.prefix(n) & masks.causal(),
    "causal-array": lambda n: masks.causal(jnp.int32(2)),
    "window": lambda n: masks.window(3, 1),
    "window-open": lambda n: masks.window(2, None),
    "windows": lambda n: masks.window(4, 1) & masks.window(2, 3) & masks.lengths(n) & masks.lengths(6),
    "windows-apart": lambda n: masks.window(-3, 5) & masks.window(5, -4),
    "beside": lambda n: masks.window(5, -2),
}
LEADS = [0, 4, -2, 9, np.array([0, 3, 8, -5], np.int32), np.array([6, 1], np.int32)]


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("first", [0, 3])
def test_a_run_is_what_is_seen(name, first):
    """Of every batch element, of which each uses entry b % length of an operand."""
    lengths = np.array([0, 4, 7, 20], np.int32)
    for lead, (t, s) in itertools.product(LEADS, [*SHAPES, (9, 3)]):
        mask = RUNS[name](lengths)
        operand = lead if isinstance(lead, int) else jattn.operand(jnp.asarray(lead), "b")
        run = seen_run(Moved(mask, Offsets(operand, first)), t, s)
        assert run is not None
        for b in range(4):
            at = lead if isinstance(lead, int) else int(lead[b % len(lead)])
            pairs = _pairs(_numbers(Moved(RUNS[name](int(lengths[b])), Offsets(at, first))), t, s)
            ends = [x if isinstance(x, int) else x.reshape(-1)[b % x.size] for x in run]
            j = np.arange(s)
            assert (pairs.any(0) == ((ends[0] <= j) & (j < ends[1]))).all(), (lead, t, s, b, ends)


def _numbers(mask):
    """A mask with numbers in the place of operands that are one."""
    held = lambda x: isinstance(x, Operand)
    return jax.tree.map(lambda x: int(x.array) if held(x) else x, mask, is_leaf=held)


@pytest.mark.parametrize(
    "mask",
    [
        masks.segments(IDS),
        ~masks.causal(),
        masks.causal() | masks.prefix(3),
        masks.lengths(3, 4),
        masks.window(jnp.int32(3), 1),
        masks.function(lambda i, j: i >= j),
    ],
)
def test_of_other_masks_there_is_none(mask):
    assert seen_run(mask, 4, 7) is None
