"""Bundles are walked, and stalls added."""

import numpy as np
import pytest
from jattn_kernels.chips import TPUS

from bench.tpu._bundles import parse
from bench.tpu._cycles import ASSUMED, DMA_LATENCY, QUEUE, Cycles, clock, count, feed, total
from bench.tpu._scalar import WalkError
from tests.bench.tpu.bundles import RECORDED, program

V5E = TPUS["v5e"]


@pytest.mark.parametrize("trips", [(1, 2, 3, 4), (0, 0, 0, 0), (5, 0, 1, 0)])
def test_recorded_dump_is_walked(trips):
    """Figures from the listing, by hand: 4 blocks pass through 6 turns of a pipeline, the loop inside has 59 bundles."""
    got = count(parse(RECORDED.read_text()), V5E, {0: np.array(trips, np.int32)})
    prologue, head, block, tail, epilogue = 0xC, 0x2E - 0xC, (0x44 - 0x2E) + (0x8B - 0x7F), 0x97 - 0x8B, 0x9C - 0x97
    issued = prologue + 6 * (head + tail) + 4 * block + (0x7F - 0x44) * sum(trips) + epilogue
    assert got.cycles - got.dma_stall - got.matrix_stall == issued
    assert got.products == 8 * sum(trips)
    assert got.dma_bytes == 2 * 512 * 128 * 2 + 512 * 128 * 4 + 16 * 32
    assert got.dma_stall > 3 * DMA_LATENCY  # the table, the first blocks, the last result
    assert got.startup < got.cycles if sum(trips) else got.startup == got.cycles


def test_an_unknown_table_is_an_error():
    with pytest.raises(WalkError, match=r"unknown predicate %p562_p12: '%515 = sbr.rel"):
        count(parse(RECORDED.read_text()), V5E)


LOOP = (
    "%s1_s0 = smov.u32 0",
    "1: %s2_s0 = sphi %s1_s0, %s3_s0  ;;  %s3_s0 = sadd.s32 1, %s2_s0",
    "%p1_p0 = scmp.lt.s32.totalorder %s3_s0, 5",
    "%9 = sbr.rel (%p1_p0) target = $region1",
    *["%v0_v0 = vmov 0.0"] * 6,
)


@pytest.mark.parametrize("chip", TPUS)
def test_branches_have_delay_slots(chip):
    slots = ASSUMED[chip].delay_slots
    assert count(program(*LOOP), TPUS[chip]).cycles == 1 + 5 * (3 + slots) + (6 - slots)


def test_a_branch_not_taken_falls_through():
    lines = ["%p1_p0 = scmp.eq.s32.totalorder 1, 2", "%9 = sbr.rel (%p1_p0) target = $region1", "", "1: "]
    assert count(program(*lines), V5E).cycles == 4


def test_a_loop_without_end_is_an_error():
    with pytest.raises(WalkError, match="no end after 1000 cycles"):
        count(program("1: %9 = sbr.rel target = $region1", *[""] * 4), V5E, limit=1000)


def test_matrix_units_take_products_at_their_pace():
    products = ["%1 = vmatmul.bf16.gmra.mxu0 %v1_v1"] * 100
    got = count(program(*products), V5E)
    assert got.cycles == 1 + 99 * feed(V5E) - QUEUE
    assert got.matrix_stall == got.cycles - 100
    assert (got.products, got.startup) == (100, 1)
    in_turn = [f"%1 = vmatmul.bf16.gmra.mxu{n % 4} %v1_v1" for n in range(100)]
    assert count(program(*in_turn), V5E).cycles == 4 + 24 * feed(V5E) - QUEUE


def test_waiting_for_a_dma():
    copy = "%1 = dma.hbm_to_vmem %s1_s1, 32768, %s2_s2, [#allocation5]"
    wait = "%2 = dma.done.wait [#allocation5], 32768"
    once = 2**20 * V5E.clock / V5E.bandwidth
    got = count(program(copy, wait), V5E)
    assert got.cycles == int(1 + once + DMA_LATENCY)
    assert got.dma_stall == got.cycles - 2
    twice = count(program(copy, copy, wait, wait), V5E)
    assert twice.cycles == int(1 + 2 * once + DMA_LATENCY)
    assert twice.dma_bytes == 2 * 2**20
    local = count(program(copy.replace("hbm", "vmem"), wait), V5E)
    assert (local.dma_bytes, local.cycles) == (0, 1 + DMA_LATENCY)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("%1 = dma.hbm_to_vmem %s1_s1, %s9_s9, %s2_s2, [#a]", "a DMA of unknown size"),
        ("%1 = dma.done.wait (%p9_p9), [#a], 4", "unknown predicate %p9_p9"),
        ("%1 = sbr.abs target = $region1", "not a branch that can be followed"),
    ],
)
def test_what_is_not_understood_is_an_error(line, message):
    with pytest.raises(WalkError, match=message):
        count(program(line), V5E)


def test_runs_add_up():
    assert total([Cycles(9, 2, 3, 4, 5, 6), Cycles(1, 1, 1, 1, 1, 1)]) == Cycles(10, 3, 4, 5, 6, 7)


def test_every_tpu_is_known_to_the_walk():
    assert list(ASSUMED) == list(TPUS)
    assert {name: feed(chip) for name, chip in TPUS.items()} == {"v4": 16, "v5e": 16, "v5p": 16, "v6e": 8, "tpu7x": 8}
    assert {name for name, chip in TPUS.items() if clock(chip) != chip.clock} == {"tpu7x"}
