"""The plan of a call over many devices: which strategy and why, how even the work is, what is sent, what it prints."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh

import jattn
from jattn import masks, normalizers
from jattn._terms import operand
from jattn.parallel._plan import _work
from jattn.parallel._shares import Shares
from tests.problems import problem

MESH = AbstractMesh((2, 4), ("batch", "sequence"))
B, T, H, D = 2, 1024, 8, 64
X = jax.ShapeDtypeStruct((B, T, H, D), "bfloat16")


def _plan(x: Any = X, **options: Any) -> Any:
    given = {"mesh": MESH, "sequence_axis": "sequence", **options}
    return jattn.parallel.explain(x, x, x, **given)


def _pairs(mask, shares):
    """The share of each device's queries with each device's keys that a mask shows, by looking at every pair."""
    size = T // shares.count
    chunks = np.array(shares.order()).reshape(shares.devices, shares.each)
    at = (chunks[..., None] * size + np.arange(size)).reshape(shares.devices, -1)
    seen = np.asarray(mask(np.arange(T)[:, None], np.arange(T)[None]))
    return np.array([[seen[np.ix_(rows, columns)].mean() for columns in at] for rows in at])


@pytest.mark.parametrize("zigzag", [False, True])
@pytest.mark.parametrize(
    "mask", [masks.causal(), masks.window(200), masks.prefix(256)], ids=["causal", "window", "prefix"]
)
def test_work_is_about_the_pairs_that_attend(mask, zigzag):
    """None where none attends, all where all do, and a half of a chunk that is hidden in part."""
    shares = Shares(4, zigzag)
    work = _work(problem((X, X, X), {"mask": mask}), shares)
    assert work is not None
    pairs = _pairs(mask, shares)
    np.testing.assert_array_equal(work == 0, pairs == 0)
    np.testing.assert_array_equal(work == 1, pairs == 1)
    np.testing.assert_allclose(work, pairs, atol=0.5)


def test_work_that_depends_on_arrays_is_known_at_run_time_alone():
    held = masks.function(lambda i, j, n: j < n, operand(np.int32(3)))
    assert _work(problem((X, X, X), {"mask": held}), Shares(4, False)) is None
    assert _plan(mask=held).balance is None
    assert "known at run time" in str(_plan(mask=held))


def test_a_causal_mask_is_even_in_zigzag_order_alone():
    assert _plan().balance == 1
    # of four devices the last has three whole chunks and half of its own, and all have a half on average
    assert _plan(mask=masks.causal()).balance == pytest.approx(2 / 3.5)
    assert _plan(mask=masks.causal(), order="zigzag").balance == pytest.approx(1)


def test_a_ring_sends_keys_and_values_once_all_the_way_round():
    own = 2 * B * T // 4 * H * D * 2
    assert _plan().sent == 4 * own
    assert _plan(batch_axis="batch").sent == 4 * own // 2


def test_the_strategy_and_why():
    soft = _plan()
    assert soft.strategy == "ring" and soft.why.startswith("a softmax joins over parts of the keys")
    assert set(soft.others) == {"all_to_all", "gather"}
    asked = _plan(strategy="gather")
    assert (asked.strategy, asked.why) == ("gather", "asked for")
    whole = _plan(normalizer=normalizers.sparsemax())
    assert whole.strategy == "all_to_all" and whole.why == "normalizer sparsemax sees whole rows, and heads divide"
    assert "normalizer sparsemax sees whole rows" in whole.others["ring"]
    few = _plan(jax.ShapeDtypeStruct((B, T, 3, D), "bfloat16"), normalizer=normalizers.sparsemax())
    assert few.strategy == "gather" and few.why.endswith("heads do not divide")


def test_times_are_those_of_a_chip():
    here, chip = _plan(), _plan(device="v5p")
    assert here.compute is None and here.network is None
    assert "known for a chip: device=" in str(here)
    assert chip.compute > 0 and chip.network > 0 and 0 <= chip.hidden <= 1
    assert "% hidden" in str(chip) and "known for a chip" not in str(chip)
    batch = _plan(device="v5p", batch_axis="batch")
    assert batch.compute < chip.compute


def test_what_it_prints_names_every_strategy():
    lines = str(_plan(mask=masks.causal())).splitlines()
    assert lines[0].startswith("strategy") and "ring" in lines[0]
    assert any(x.lstrip().startswith("not all_to_all") for x in lines)
    assert "57% of the busiest device's" in str(_plan(mask=masks.causal()))
    assert len({x.index(x.split("  ")[-1].lstrip()) for x in lines[-3:]}) == 1  # values stand below one another


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"sequence_axis": "time"}, ValueError, "'time' is no axis of the mesh"),
        ({"device": "tpu9000"}, ValueError, "device"),
        ({"strategy": "star"}, ValueError, "strategy must be one of"),
        ({"pages": np.zeros((2, 2), int)}, (TypeError, ValueError), "pages"),
        ({"is_causal": True}, TypeError, "masks.causal"),
    ],
)
def test_what_attention_would_not_take(options, error, words):
    with pytest.raises(error, match=words):
        _plan(**options)
