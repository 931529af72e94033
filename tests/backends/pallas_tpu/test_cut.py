"""Plans for chips that are not here: what explain says of tiles, time and what does not fit."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jattn_kernels import tables

import jattn
from jattn import masks, mods
from tests import aot


@pytest.mark.parametrize("device", ["v4", "v5e", "v5p", "v6e", "tpu7x"])
def test_explain_for_a_chip_that_is_not_here(device):
    x = jax.ShapeDtypeStruct((1, 8192, 8, 128), "bfloat16")
    plan: Any = jattn.explain(x, x, x, mask=masks.causal(), device=device)
    assert plan.backend == "pallas_tpu"
    assert plan.milliseconds > 0
    assert device in plan.tuned
    empty, partial, full = plan.blocks
    assert empty == full > partial > 0
    assert "estimate" in str(plan)


def test_explain_says_when_its_table_has_no_such_case():
    x = jax.ShapeDtypeStruct((1, 1000, 8, 80), "bfloat16")
    assert "nearest" in str(jattn.explain(x, x, x, device="v5e").tuned)
    with pytest.raises(ValueError, match="v5e"):
        jattn.explain(x, x, x, device="v9")


@pytest.mark.parametrize("name", aot.LONG)
def test_explain_plans_long_sequences(name):
    t = aot.LONG[name]
    x, ids = jax.ShapeDtypeStruct((1, t, 1, 128), "bfloat16"), jnp.arange(t, dtype=jnp.int32)[None] // 9000
    mask = {
        "window": masks.window(1023),
        "full": None,
        "causal": masks.causal(),
        "causal-segments": masks.causal() & masks.segments(ids),
        "window-segments": masks.window(1023) & masks.segments(ids),
    }[name]
    plan: Any = jattn.explain(x, x, x, mask=mask, device="v5e")
    assert plan.backend == "pallas_tpu"
    assert plan.milliseconds > 0


def test_beyond_scalar_memory_it_refuses():
    x = jax.ShapeDtypeStruct((1, 2**25, 1, 128), "bfloat16")
    with pytest.raises(jattn.UnsupportedError, match="16777216"):
        jattn.explain(x, x, x, device="v5e", implementation="pallas_tpu")


def test_beyond_fast_memory_it_refuses():
    x = jax.ShapeDtypeStruct((1, 2**19, 1, 128), "bfloat16")
    strip = mods.relative(jnp.ones((1, 32)))
    assert jattn.explain(x, x, x, mods=strip, device="v5e").backend == "pallas_tpu"
    with pytest.raises(jattn.UnsupportedError, match="relative positions"):
        jattn.explain(x, x, x, mods=strip, device="v4", implementation="pallas_tpu")


def test_time_is_at_least_bytes_over_bandwidth():
    """A decoding step: one query, and a cache that takes a third of a millisecond to read."""
    q, k = (jax.ShapeDtypeStruct(x, "bfloat16") for x in ((8, 1, 32, 128), (8, 8192, 8, 128)))
    plan: Any = jattn.explain(q, k, k, device="v5e")
    assert plan.milliseconds >= 1e3 * plan.bytes / 819e9 > 0.32
    assert plan.flops == 2 * 8 * 32 * 8192 * (128 + 128)  # rows that fill a tile up are none


@pytest.mark.parametrize(
    ("device", "t"), [("v4", 2048), ("v5e", 1000), ("v5p", 3000), ("v6e", 1024), ("v6e", 3000), ("tpu7x", 2048)]
)
def test_what_hides_more_takes_no_longer(device, t):
    x = jax.ShapeDtypeStruct((1, t, 8, 64), "bfloat16")
    plan: Any = lambda mask: jattn.explain(x, x, x, mask=mask, device=device)
    time = lambda mask: plan(mask).milliseconds
    causal, full = masks.causal(), time(None)
    windows = [masks.window(n) for n in (100, 700, t - 2)]
    times = [*map(time, (*windows, causal, masks.causal(900))), full]
    assert times == sorted(times)
    assert time(masks.window(100, 100)) <= full and time(masks.dilated(2)) <= full
    assert time(causal & masks.segments(jnp.arange(t) // 300)) <= time(causal)


@pytest.mark.parametrize(
    "entry", [x for x in tables.read("tpu") if x.direction == "forward" and x.d == 64], ids=lambda x: x.name
)
def test_what_was_counted_is_the_estimate(entry):
    x = jax.ShapeDtypeStruct((1, entry.t, 1, entry.d), "bfloat16")
    mask = {"full": None, "causal": masks.causal(), "window": masks.window(1023)}[entry.mask]
    plan: Any = jattn.explain(x, x, x, mask=mask, device=entry.chip)
    assert plan.tuned == f"tuned for {entry.name}"
    assert plan.milliseconds == pytest.approx(entry.milliseconds, rel=0.05)


def test_a_window_as_wide_as_the_sequence_is_none():
    x = jax.ShapeDtypeStruct((1, 8192, 8, 128), "bfloat16")
    wide = masks.window(left=8191)
    plans = [jattn.explain(x, x, x, mask=m, device="v5e") for m in (masks.causal(), masks.causal() & wide, wide)]
    assert len({plan.milliseconds for plan in plans}) == 1
    assert len({plan.tuned for plan in plans}) == 1
    full = [jattn.explain(x, x, x, mask=m, device="v5e") for m in (None, masks.window(8191, 8191))]
    assert full[0].milliseconds == full[1].milliseconds
