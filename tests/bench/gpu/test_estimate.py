"""From instructions to a time."""

import dataclasses
import math

import pytest
from jattn_kernels.chips import GPUS

from bench.gpu._cases import Case
from bench.gpu._contenders import FORWARD, JATTN, KEYS, PEERS, QUERIES
from bench.gpu._estimate import estimate, role_of, scores
from bench.gpu._kernels import CompiledKernel
from bench.gpu._sass import Loop

H100 = GPUS["h100"]


def _loop(instructions: int, products: int, loaded: int = 0, **pipes: int) -> Loop:
    return Loop(0, {**pipes, "float": instructions - sum(pipes.values())}, products, loaded)


@pytest.mark.parametrize(("role", "products"), [(FORWARD, 2), (QUERIES, 3), (KEYS, 4)])
def test_scores_follow_from_products(role, products):
    loop = _loop(400, 64 * 64 * products * 128 // 4)
    assert scores(loop, role, 128) == 64 * 64


def test_scores_of_blackwell_are_those_read():
    assert scores(_loop(400, 0, loaded=128), FORWARD, 128) == 128 * 128
    with_sums = dataclasses.replace(_loop(400, 0, loaded=128 + 64), stored=128 // 2 + 64)
    assert scores(with_sums, FORWARD, 64) == 128 * 128
    assert scores(_loop(400, 0, loaded=128), KEYS, 128) == 64 * 128  # and as many gradients


@pytest.mark.parametrize("place", [1, 2])
@pytest.mark.parametrize(("role", "products"), [(QUERIES, 3), (KEYS, 4)])
def test_kernels_are_told_apart_by_their_products(place, role, products):
    loop = _loop(400, 64 * 128 * products * 64 // 4)
    assert role_of(PEERS["mgpu"], CompiledKernel("anonymous", 384, 168, 0, None, [loop]), place, 64) == role


def test_nobody_knows_some_kernels():
    alone = dataclasses.replace(JATTN, roles={}, order=())
    assert role_of(alone, CompiledKernel("anonymous", 384, 168, 0, None, []), 0, 64) is None
    assert role_of(PEERS["mgpu"], CompiledKernel("anonymous", 384, 168, 0, None, []), 1, 64) == QUERIES


def test_units_of_a_full_forward_tile():
    """64 x 128 scores: two products of width 128 at 4096 flops a cycle, 66 special functions of 32 threads on 16 lanes."""
    loop = _loop(466, 64 * 128 * 256 // 4, special=66, integer=24)
    case = Case("plain", 1, 4096, 132, 128, "fwd", "h100")
    got = estimate(CompiledKernel("k", 384, 168, 0, None, [loop]), FORWARD, case, H100)
    assert got is not None
    assert got.columns == 128
    assert got.full.instructions == 466
    assert got.full.cycles == {"tensor": 1024, "issue": 466, "special": 66 * 8, "alu": 24 * 2, "float": 466 - 66 - 24}
    slow = estimate(CompiledKernel("k", 384, 168, 0, None, [loop]), FORWARD, case, GPUS["a100"])
    assert slow is not None
    assert slow.full.cycles["float"] == 2 * (466 - 66 - 24)  # on 64 lanes
    assert got.bound == "tensor"
    flops = 4 * 128 * 4096**2 * 132
    assert math.isclose(got.milliseconds, 1e3 * flops / H100.peak(), rel_tol=1e-9)  # that is what the bound means


def test_partial_tiles_take_the_dearer_loop():
    cheap, dear = _loop(2000, 64 * 128 * 256 // 4), _loop(3000, 64 * 128 * 256 // 4)
    case = Case("causal", 1, 1024, 132, 128, "fwd", "h100")
    got = estimate(CompiledKernel("k", 384, 168, 0, None, [dear, cheap]), FORWARD, case, H100)
    assert got is not None
    assert (got.full.instructions, got.partial.instructions, got.bound) == (2000, 3000, "issue")
    cycles = 2 * (28 * 2000 + 8 * 3000)  # 128 x 128 tiles of two warpgroups: 28 full, 8 partial
    assert math.isclose(got.milliseconds, 1e3 * cycles / H100.clock, rel_tol=1e-9)


def test_smaller_tiles_are_scaled_to_the_tables():
    loop = _loop(240, 64 * 64 * 256 // 4)
    got = estimate(CompiledKernel("k", 128, 168, 0, None, [loop]), FORWARD, Case("plain", 1, 256, 1, 128, "fwd"), H100)
    assert got is not None
    assert (got.columns, got.full.instructions) == (64, 480)


def test_no_estimate_where_no_loop_says_what_it_computes():
    case = Case("plain", 1, 256, 1, 128, "fwd")
    assert estimate(CompiledKernel("k", 128, 168, 0, None, [_loop(9, 0)]), FORWARD, case, H100) is None
    assert estimate(CompiledKernel("k", 128, 168, 0, None, []), FORWARD, case, H100) is None


def test_a_step_that_decodes_waits_for_its_keys_and_values():
    case = Case("decode", 8, 1, 32, 128, "fwd", "h100", s=8192, g=8)
    of = lambda instructions: estimate(
        CompiledKernel("k", 384, 168, 0, None, [_loop(instructions, 64 * 128 * 256 // 4)]), FORWARD, case, H100
    )
    quick, slow = of(456), of(50_000)
    assert quick is not None and slow is not None
    assert (quick.bound, slow.bound) == ("memory", "issue")
    assert quick.milliseconds == pytest.approx(1e3 * 2 * 2 * 8 * 8192 * 8 * 128 / H100.bandwidth)
    assert slow.milliseconds == pytest.approx(1e3 * 8 * 8 * (8192 // 128) * 50_000 / H100.cores / H100.clock)
