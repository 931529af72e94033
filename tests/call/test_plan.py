"""The plan that `explain` gives is the one that runs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jattn_kernels import chips, tables

import jattn
from jattn import masks, normalizers
from jattn._call.plan import plan as planned
from tests.problems import problem

SHAPE = jax.ShapeDtypeStruct((2, 3000, 4, 32), jnp.float32)


@pytest.mark.smoke
def test_blocks_are_counted_as_the_mask_has_them():
    plan: Any = jattn.explain(SHAPE, SHAPE, SHAPE, mask=masks.causal() & masks.window(900))
    rows, columns = plan.tile
    starts = lambda block: np.minimum(np.arange(-(-3000 // block)) * block, 3000 - block)
    i, j = np.arange(3000)[:, None], np.arange(3000)[None]
    live = (j <= i) & (i - j <= 900)
    tiles = [live[a : a + rows, c : c + columns] for a in starts(rows) for c in starts(columns)]
    empty, full = sum(not x.any() for x in tiles), sum(bool(x.all()) for x in tiles)
    heads = 2 * 4
    assert plan.blocks[0] == heads * empty
    assert sum(plan.blocks) == heads * len(tiles)
    assert plan.blocks[2] <= heads * full  # the last column of tiles may overlap the one before and is masked for it
    assert plan.blocks[2] >= heads * (full - 1)
    assert plan.flops == 2 * (plan.blocks[1] + plan.blocks[2]) * rows * columns * (32 + 32)


def test_bytes_and_memory():
    plan: Any = jattn.explain(SHAPE, SHAPE, SHAPE, return_lse=True)
    one = 2 * 3000 * 4 * 4
    assert plan.bytes == 4 * one * 32 + one  # q, k, v, out and lse
    run = jax.jit(lambda q, k, v: jattn.attention(q, k, v, return_lse=True))
    memory: Any = run.lower(SHAPE, SHAPE, SHAPE).compile().memory_analysis()
    wanted = memory.temp_size_in_bytes
    assert plan.peak_memory == wanted


def test_every_other_backend_has_a_reason():
    plan: Any = jattn.explain(SHAPE, SHAPE, SHAPE)
    assert plan.backend == "blockwise"
    assert set(plan.others) == {"reference", "pallas_tpu", "pallas_gpu", "cudnn"}
    assert all(plan.others.values())
    insisted = jattn.explain(*[jnp.ones((1, 8, 2, 4))] * 3, implementation="reference")
    assert insisted.backend == "reference"
    assert insisted.others["blockwise"] == "was not asked for"
    assert insisted.tile is None


def test_it_prints_a_short_table():
    text = str(jattn.explain(SHAPE, SHAPE, SHAPE, mask=masks.causal()))
    lines = text.splitlines()
    assert len(lines) <= 12
    for word in ("blockwise", "not pallas_tpu", "tile", "empty", "partial", "full", "flops", "bytes", "peak memory"):
        assert word in text
    assert max(map(len, lines)) <= 100


def test_blocks_known_only_at_run_time():
    seen = []

    @jax.jit
    def fn(ids, x):
        seen.append(jattn.explain(x, x, x, mask=masks.segments(ids)))
        return x

    ids = jnp.arange(64)[None] // 16
    fn(ids, jnp.ones((1, 64, 2, 4)))
    assert seen[0].blocks is None
    assert "run time" in str(seen[0])
    concrete = jattn.explain(*[jnp.ones((1, 64, 2, 4))] * 3, mask=masks.segments(ids), blocks=(16, 16))
    assert concrete.blocks == (2 * 12, 0, 2 * 4)
    assert concrete.tile == (16, 16)


GPUS = ["a100", "l4", "h100", "h200", "b200"]
LOW = jax.ShapeDtypeStruct((1, 16384, 16, 128), jnp.bfloat16)


@pytest.mark.parametrize("device", GPUS)
def test_a_gpu_that_is_not_here_has_a_plan(device):
    plan: Any = jattn.explain(SHAPE, SHAPE, SHAPE, device=device)
    assert plan.backend == "blockwise"
    assert plan.others["pallas_tpu"].startswith("runs on TPU, not gpu")
    assert "TF32" in plan.others["pallas_gpu"] or "needs jax 0.11" in plan.others["pallas_gpu"]
    assert plan.others["cudnn"] == "takes bfloat16 and float16, not float32"
    assert plan.peak_memory is None


@pytest.mark.parametrize("device", GPUS)
def test_a_kernel_for_gpu_has_an_estimate(device):
    causal: Any = jattn.explain(LOW, LOW, LOW, mask=masks.causal(), device=device, implementation="cudnn")
    full: Any = jattn.explain(LOW, LOW, LOW, device=device, implementation="cudnn")
    chip = chips.GPUS[device]
    for plan in (causal, full):
        assert plan.milliseconds >= 1e3 * max(plan.flops / chip.peak(), plan.bytes / chip.bandwidth)
        assert plan.milliseconds < 3e3 * plan.flops / chip.peak()
        assert "not yet shown to keep the contracts on this chip" in str(plan)
    assert 0.5 < causal.milliseconds / full.milliseconds < 0.6
    assert causal.blocks[0] == 16 * 127 * 128 / 2
    one = jax.ShapeDtypeStruct((8, 1, 16, 128), jnp.bfloat16)
    keys = jax.ShapeDtypeStruct((8, 8192, 16, 128), jnp.bfloat16)
    decode: Any = jattn.explain(one, keys, keys, device=device, implementation="cudnn")
    assert decode.milliseconds >= 1e3 * 2 * 8 * 8192 * 16 * 128 * 2 / chip.bandwidth


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_is_confirmed_is_planned(dtype):
    x = jax.ShapeDtypeStruct((1, 256, 2, 64), dtype)
    given = problem((x, x, x), {})
    run = tables.Confirmed("h100", "cudnn", "bfloat16", tables.PASSES, "NVIDIA H100 PCIe", "2026-12-31", "a.json")
    plan = planned(given, None, None, "h100", (run,))
    assert plan.backend == ("cudnn" if dtype == "bfloat16" else "blockwise")
    if dtype == "bfloat16":
        assert plan.evidence == "confirmed (NVIDIA H100 PCIe, 2026-12-31, a.json)"
        assert plan.evidence in str(plan)
        assert plan.others["blockwise"] == "cudnn is faster"


def test_normalisers_without_tiles_have_a_plan():
    plan: Any = jattn.explain(SHAPE, SHAPE, SHAPE, normalizer=normalizers.sparsemax())
    assert plan.backend == "blockwise"
    assert plan.tile is None
    assert plan.peak_memory < 3000 * 3000 * 4 * 8


def test_blocks_of_keys_that_an_elementwise_normaliser_leaves_out():
    options: dict[str, Any] = {"mask": masks.causal() & masks.window(100), "normalizer": normalizers.sigmoid()}
    plan: Any = jattn.explain(SHAPE, SHAPE, SHAPE, **options)
    rows, columns = plan.tile
    assert rows < 3000 and columns == 3000 // 8
    starts = lambda block: np.minimum(np.arange(-(-3000 // block)) * block, 3000 - block)
    some = np.array([[a + rows > c and a - 100 < c + columns for c in starts(columns)] for a in starts(rows)])
    assert sum(plan.blocks) == 2 * 4 * some.size
    assert plan.blocks[0] == 2 * 4 * (~some).sum()
    assert plan.flops == 2 * (plan.blocks[1] + plan.blocks[2]) * rows * columns * (32 + 32)
    everything: Any = jattn.explain(SHAPE, SHAPE, SHAPE, normalizer=normalizers.sigmoid())
    assert everything.blocks[:2] == (0, 0) and everything.flops > 2 * plan.flops
    few: Any = jattn.explain(*[jnp.ones((1, 64, 2, 4))] * 3, **options)
    assert few.tile is None and few.flops == 2 * 2 * 64 * 64 * 8
