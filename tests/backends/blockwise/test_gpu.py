"""Blockwise's tile sizes on a GPU, where each tile is a dozen kernels to launch; and on a CPU, where they are timed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jattn_kernels.chips import GPUS

import jattn
from jattn import masks, scores
from jattn.backends.blockwise import gpu

MASKS = {"none": None, "causal": masks.causal(), "window": masks.window(1023)}


def _plan(q, k=None, device: Any = "h100", **options) -> Any:
    q, k = (jax.ShapeDtypeStruct(x, "bfloat16") for x in (q, k or q))
    return jattn.explain(q, k, k, device=device, implementation="blockwise", **options)


@pytest.mark.parametrize("device", GPUS)
@pytest.mark.parametrize("mask", MASKS)
def test_a_step_holds_as_much_as_makes_launches_a_small_share(mask, device):
    plan = _plan((1, 16384, 16, 128), device=device, mask=MASKS[mask])
    rows, columns = plan.tile
    assert rows >= 256 and columns >= 512
    call = gpu.CallSizes(16384, 16384, 16, 16, 1, 1, 256, mask != "none", 1024 if mask == "window" else 32768)
    held = gpu.step(device)
    assert call.held(rows, columns) <= held
    assert 16 * held <= GPUS[device].memory / 16  # bytes of the four arrays of a step, backward
    assert plan.tuned == "estimated: kernels launched, against work"
    assert plan.tuned in str(plan)
    heads = min(16, held // call.held(rows, columns))
    # else launches would take most of the time; a window has fewer scores to offer
    assert heads * call.scores(rows, columns) > held / (8 if mask == "window" else 4)


def test_faster_memory_wants_larger_steps():
    assert gpu.step("l4") < gpu.step("a100") < gpu.step("h100") < gpu.step("h200") < gpu.step("b200")
    assert gpu.step(None) == gpu.step("l4")


def test_a_mask_wants_smaller_tiles_and_a_window_no_larger_than_itself():
    tiles = {name: _plan((1, 16384, 16, 128), mask=mask).tile for name, mask in MASKS.items()}
    none, causal, window = (x * y for x, y in tiles.values())
    assert none > causal >= window
    assert max(tiles["window"]) <= 1024
    plan = _plan((1, 16384, 16, 128), mask=MASKS["window"])
    assert plan.blocks[0] > 0.8 * sum(plan.blocks)


def test_what_fits_one_step_is_one():
    assert _plan((4, 512, 8, 64)).tile == (512, 512)
    assert _plan((8, 1, 32, 128), (8, 8192, 8, 128)).tile == (1, 8192)


def test_tiles_count_what_a_score_holds():
    x = jnp.ones((64, 64), "bfloat16")
    wide = _plan((1, 2048, 4, 64), score=scores.additive(x, x, jnp.ones(64, "bfloat16")))
    narrow = _plan((1, 2048, 4, 64))
    assert wide.tile[0] * wide.tile[1] * 64 <= gpu.step("h100")
    assert wide.tile[0] * wide.tile[1] < narrow.tile[0] * narrow.tile[1]


def test_who_says_blocks_gets_them():
    plan = _plan((1, 4096, 2, 64), blocks=(64, 128))
    assert plan.tile == (64, 128) and plan.tuned is None
