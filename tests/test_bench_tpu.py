"""The estimates for TPUs: bundles read and walked, tables found, figures next to their targets. No TPU and no libtpu."""

import dataclasses
import importlib.machinery
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jattn_kernels import tables as tuned
from jattn_kernels.tpu.work import Sizes
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from bench import __main__ as bench
from bench import (
    _tpu_bundles,
    _tpu_cases,
    _tpu_compile,
    _tpu_contenders,
    _tpu_published,
    _tpu_report,
    _tpu_spread,
    _tpu_worker,
    tpu,
    tune,
)
from bench._tpu_bundles import Instruction, parse, split
from bench._tpu_cases import Case
from bench._tpu_chips import CHIPS
from bench._tpu_cycles import DMA_LATENCY, QUEUE, Count, count, total
from bench._tpu_estimate import Estimate, Kept, estimate
from bench._tpu_published import published
from bench._tpu_scalar import ScalarCore, WalkError, words
from bench._tpu_tables import tables

V5E = CHIPS["v5e"]
RECORDED = Path(__file__).parent / "data" / "tpu_v5e_final_bundles.txt"


def program(*lines: str) -> _tpu_bundles.Program:
    """A program of these bundles; `1: ...` starts region 1."""
    text = ""
    for at, line in enumerate(lines):
        region, body = re.fullmatch(r"(?:(\d+): )?(.*)", line).groups()
        note = f" /* Start region {region} */" if region else ""
        text += f"  {at:#x}   : > {{ {body} }}{note}\n"
    return parse(text)


# Reading bundles


def test_recorded_dump_is_read_whole():
    found = parse(RECORDED.read_text())
    assert len(found.bundles) == 0x9C
    assert (found.regions[96], found.regions[85], found.regions[79], found.regions[28]) == (0xC, 0x44, 0x7F, 0x8B)
    assert sum(len(bundle.products) for bundle in found.bundles) == 8
    assert found.bundles[0x5D].products == ((0, 1.0), (1, 1.0))
    ops = {one.op for bundle in found.bundles for one in bundle.scalar}
    assert {"operand.memory", "sbr.rel", "dma.hbm_to_vmem", "dma.vmem_to_hbm", "dma.done.wait", "sphi", "sld"} <= ops
    assert not any(op.startswith(("v", "shalt")) for op in ops)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("%s1_s0 = sadd.s32 1, %s2_s3", Instruction("", "sadd.s32", "%s1_s0", args=("1", "%s2_s3"))),
        ("%s1_s0 = smov.u32 (!%p3_p4), 0", Instruction("", "smov.u32", "%s1_s0", "!%p3_p4", None, ("0",))),
        ("%s1_s0 = smov.u32 (%p3_p4, %s9_s9), %s2_s2", Instruction("", "smov.u32", "%s1_s0", "%p3_p4", "%s9_s9", ("%s2_s2",))),
        ("%7 = sbr.rel (!%p1_p0) target = $region12", Instruction("", "sbr.rel", None, "!%p1_p0", None, ("12",))),
        ("%7 = sst [smem:[#allocation3_spill]] %s4_s4", Instruction("", "sst", args=("[smem:[#allocation3_spill]]", "%s4_s4"))),
        ("%s4_s1 = sld [smem:[#allocation3 + %s1_s1]] (!%p1_p1)", Instruction("", "sld", "%s4_s1", "!%p1_p1", None, ("[smem:[#allocation3 + %s1_s1]]",))),
        ("%7 = dma.done.wait (%p1_p1), %s1_s1, 16", Instruction("", "dma.done.wait", None, "%p1_p1", None, ("%s1_s1", "16"))),
        ("%7 = dma.hbm_to_vmem [thread:$0]  (%p1_p1), %s1_s1, 64, %s2_s2, [#allocation5]", Instruction("", "dma.hbm_to_vmem", None, "%p1_p1", None, ("%s1_s1", "64", "%s2_s2", "[#allocation5]"))),
        ("%s9_s0 = inlined_call_operand.hbm [shape: bf16[4,8], index: 3, kind: input]", Instruction("", "operand.memory", "%s9_s0", args=("3",))),
    ],
)  # fmt: skip
def test_instructions(text, expected):
    (found,) = program(text).bundles[0].scalar
    assert dataclasses.replace(found, text="") == expected


def test_vector_instructions_are_dropped_and_products_counted():
    found = program(
        "%v1_v0 = vld [vmem:[%s1_s0] sm:$0xff]  ;;  %3 = vst [vmem:[%s1_s0]] %v1_v0  ;;  %5 = vsyncpa [#a], 1"
    )
    assert found.bundles[0].plain
    found = program("%1 = vmatmul.bf16.gmra.mxu3 %v1_v1  ;;  %2 = vmatmul.mubr.f32.vlgmr.msra.gmra.mrb[4].mxu0 %v1_v1")
    assert found.bundles[0].products == ((3, 1.0), (0, 0.5))


def test_meeting_paths_take_effect_first_and_stores_last():
    found = program("%1 = sst [smem:[#a]] %s1_s0  ;;  %s1_s0 = sadd.s32 %s2_s0, 1  ;;  %s2_s0 = sphi %s3_s0, %s1_s0")
    assert [one.op for one in found.bundles[0].scalar] == ["sphi", "sadd.s32", "sst"]


def test_split_and_no_bundles():
    assert split("[#a + %s1], (%p1, %s2), 4") == ["[#a + %s1]", "(%p1, %s2)", "4"]
    with pytest.raises(ValueError, match="no bundles"):
        parse("not a dump")


# Walking them


@pytest.mark.parametrize("trips", [(1, 2, 3, 4), (0, 0, 0, 0), (5, 0, 1, 0)])
def test_recorded_dump_is_walked(trips):
    """Figures from the listing, by hand: 4 blocks pass through 6 turns of a pipeline, the loop inside has 59 bundles."""
    found = count(parse(RECORDED.read_text()), V5E, {0: np.array(trips, np.int32)})
    prologue, head, block, tail, epilogue = 0xC, 0x2E - 0xC, (0x44 - 0x2E) + (0x8B - 0x7F), 0x97 - 0x8B, 0x9C - 0x97
    issued = prologue + 6 * (head + tail) + 4 * block + (0x7F - 0x44) * sum(trips) + epilogue
    assert found.cycles - found.dma_stall - found.matrix_stall == issued
    assert found.products == 8 * sum(trips)
    assert found.dma_bytes == 2 * 512 * 128 * 2 + 512 * 128 * 4 + 16 * 32
    assert found.dma_stall > 3 * DMA_LATENCY  # the table, the first blocks, the last result
    assert found.startup < found.cycles if sum(trips) else found.startup == found.cycles


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


@pytest.mark.parametrize("chip", CHIPS)
def test_branches_have_delay_slots(chip):
    slots = CHIPS[chip].delay_slots
    assert count(program(*LOOP), CHIPS[chip]).cycles == 1 + 5 * (3 + slots) + (6 - slots)


def test_a_branch_not_taken_falls_through():
    lines = ["%p1_p0 = scmp.eq.s32.totalorder 1, 2", "%9 = sbr.rel (%p1_p0) target = $region1", "", "1: "]
    assert count(program(*lines), V5E).cycles == 4


def test_a_loop_without_end_is_an_error(monkeypatch):
    monkeypatch.setattr("bench._tpu_cycles.LIMIT", 1000)
    with pytest.raises(WalkError, match="no end after 1000 cycles"):
        count(program("1: %9 = sbr.rel target = $region1", *[""] * 4), V5E)


def test_matrix_units_take_products_at_their_pace():
    products = ["%1 = vmatmul.bf16.gmra.mxu0 %v1_v1"] * 100
    found = count(program(*products), V5E)
    assert found.cycles == 1 + 99 * V5E.feed - QUEUE
    assert found.matrix_stall == found.cycles - 100
    assert (found.products, found.startup) == (100, 1)
    in_turn = [f"%1 = vmatmul.bf16.gmra.mxu{n % 4} %v1_v1" for n in range(100)]
    assert count(program(*in_turn), V5E).cycles == 4 + 24 * V5E.feed - QUEUE


def test_waiting_for_a_dma():
    copy = "%1 = dma.hbm_to_vmem %s1_s1, 32768, %s2_s2, [#allocation5]"
    wait = "%2 = dma.done.wait [#allocation5], 32768"
    once = 2**20 * V5E.hertz / V5E.bandwidth
    found = count(program(copy, wait), V5E)
    assert found.cycles == int(1 + once + DMA_LATENCY)
    assert found.dma_stall == found.cycles - 2
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


def core_after(*lines: str, **operands: np.ndarray) -> ScalarCore:
    core = ScalarCore({int(name[1:]): value for name, value in operands.items()})
    for bundle in program(*lines).bundles:
        for instruction in bundle.scalar:
            core.store(instruction) if instruction.op == "sst" else core.execute(instruction)
    return core


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("sadd.s32 4294967295, 3", 2),
        ("ssub.s32 2, 5", -3),
        ("smul.u32 65536, 65536", 0),
        ("sand.u32 1, 7", 1),
        ("sor.u32 8, 7", 15),
        ("sxor.u32 8, 12", 4),
        ("sshll.u32 3, 4", 48),
        ("sshra.s32 4294967280, 2", -4),
        ("sshrl.u32 4294967280, 28", 15),
        ("smin.s32 4294967295, 1", -1),
        ("smax.s32 4294967295, 0x10", 16),
        ("sadd.s32 1, %s99_s9", None),
        ("snew.s32 1", None),
    ],
)
def test_arithmetic(text, value):
    assert core_after(f"%s1_s0 = {text}").registers["%s1_s0"] == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("scmp.lt.s32.totalorder 4294967295, 1", True),
        ("scmp.lt.u32.totalorder 4294967295, 1", False),
        ("scmp.ge.s32.totalorder 2, 2", True),
        ("scmp.ne.s32.totalorder %s9_s9, 2", None),
        ("por %p1_p1, %p9_p9", True),
        ("por %p2_p2, %p9_p9", None),
        ("pand %p2_p2, %p9_p9", False),
        ("pnand %p1_p1, !%p2_p2", False),
        ("pnor %p2_p2, %p2_p2", True),
        ("pneg %p1_p1", False),
        ("pmov !%p1_p1", False),
        ("pxor %p1_p1, %p2_p2", True),
    ],
)
def test_predicates(text, value):
    given = ["%p1_p1 = scmp.eq.s32.totalorder 1, 1", "%p2_p2 = scmp.eq.s32.totalorder 1, 2"]
    assert core_after(*given, f"%p3_p3 = {text}").registers["%p3_p3"] is value


def test_what_a_taken_branch_guards_does_not_hold():
    """`dma.done.wait (%p2)` may stand in the delay slots of a branch on %p1, where nothing has written %p2."""
    guarded = "%p2_p2 = scmp.eq.s32.totalorder (!%p1_p1), 1, 1"
    assert core_after("%p1_p1 = scmp.eq.s32.totalorder 1, 1", guarded).registers["%p2_p2"] is False
    before = "%p2_p2 = scmp.eq.s32.totalorder 1, 1"
    assert core_after(before, "%p1_p1 = scmp.eq.s32.totalorder 1, 1", guarded).registers["%p2_p2"] is True


def test_guards_selects_and_spills():
    core = core_after(
        "%p1_p1 = scmp.eq.s32.totalorder 1, 1",
        "%s1_s0 = smov.u32 10",
        "%s2_s0 = smov.u32 (!%p1_p1), 20",
        "%s3_s3 = sphi %s1_s0, %s2_s0",
        "%s4_s4 = smov.u32 (!%p1_p1, %s1_s0), 30",
        "%s5_s5 = scalar_select %p1_p1, 1, 2",
        "%1 = sst [smem:[#allocation7 + $0x1]] %s5_s5",
        "%2 = sst [smem:[#allocation7 + $0x1]] (!%p1_p1), 99",
        "%s6_s6 = sld [smem:[#allocation7 + %s5_s5]]",
        "%s7_s7 = sld [smem:[#allocation0]]",
        "%s8_s8 = sld [smem:[#allocation8]]",
    )
    found = [core.registers.get(f"%s{n}_s{n}") for n in (3, 4, 5, 6, 7, 8)]
    assert found == [10, 10, 1, 1, 0, None]
    assert "%s2_s0" not in core.registers


def test_a_dynamic_bound_is_a_register():
    line = "%s1_s0 = inlined_call_operand.<no memory space> [shape: s32[], index: 0, kind: input]"
    for value in (np.array(6, np.int32), np.array([6], np.int32)):
        assert core_after(line, o0=value).registers["%s1_s0"] == 6
    assert core_after(line).registers["%s1_s0"] is None


def test_how_vectors_lie_in_scalar_memory():
    assert words(np.array([1, -2, 3], np.int32))[:4] == [1, -2, 3, 0]
    found = words(np.arange(600).astype(np.int8))
    assert len(found) == 256
    assert [(found[5] >> shift) & 255 for shift in (0, 8, 16, 24)] == [5, 133, 261 % 256, 389 % 256]
    assert found[128] & 255 == 512 % 256
    assert words(np.arange(300, dtype=np.int16))[1] == 1 + (129 << 16)
    with pytest.raises(WalkError, match=r"shape \(2, 3\)"):
        words(np.zeros((2, 3), np.int32))


# Finding tables and what lies between kernels


def _call(grid: int):
    """A kernel that takes a table and copies x."""

    def kernel(table_ref, x_ref, o_ref):
        o_ref[...] = x_ref[...] + table_ref[0]

    def at(i, table_ref):
        return i, 0

    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(1, (grid,), [pl.BlockSpec((8, 128), at)], pl.BlockSpec((8, 128), at)),
        out_shape=jax.ShapeDtypeStruct((8 * grid, 128), jnp.int32),
        name="copies",
    )


def _lowered(fn, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in shapes]
    return jax.jit(fn).trace(*arguments).lower(lowering_platforms=("tpu",)).compiler_ir("stablehlo")


def test_tables_are_computed_from_the_program_around_the_kernel():
    @jax.jit
    def inner(table, x):
        return _call(2)(jnp.roll(table, 1) * 2, x)

    def outer(x):
        table = jnp.arange(4, dtype=jnp.int32)
        return inner(table + 1, inner(table, x))

    found = tables(_lowered(outer, (16, 128)))
    assert [one.kernel for one in found] == ["copies", "copies"]
    assert [[run[0].tolist() for run in one.runs] for one in found] == [[[6, 0, 2, 4]], [[8, 2, 4, 6]]]
    assert [[list(run) for run in one.runs] for one in found] == [[[0]], [[0]]]


def test_tables_that_depend_on_arguments_are_left_out():
    (found,) = tables(_lowered(lambda table, x: _call(2)(table, x), (4,), (16, 128)))
    assert found.runs == [{}]


def test_a_kernel_in_a_loop_has_the_tables_of_each_run():
    def loop(x):
        first = jnp.arange(4, dtype=jnp.int32)

        def body(carry, n):
            x, grown = carry
            return (_call(2)(first * n, _call(2)(grown, x)), grown + 1), x.sum()

        (x, grown), _ = jax.lax.scan(body, (x, first), 10 * jnp.arange(3, dtype=jnp.int32))
        return _call(2)(grown, x)

    grown, scaled, last = tables(_lowered(loop, (16, 128)))
    assert [run[0].tolist() for run in grown.runs] == [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5]]
    assert [run[0].tolist() for run in scaled.runs] == [[0, 0, 0, 0], [0, 10, 20, 30], [0, 20, 40, 60]]
    assert [run[0].tolist() for run in last.runs] == [[3, 4, 5, 6]]


def test_a_loop_in_a_loop():
    def loop(x):
        inner = lambda n: lambda m, x: _call(2)(jnp.stack([n, m, n, m]), x)
        return jax.lax.fori_loop(0, 2, lambda n, x: jax.lax.fori_loop(5, 7, inner(n), x), x)

    (found,) = tables(_lowered(loop, (16, 128)))
    assert [run[0].tolist()[:2] for run in found.runs] == [[0, 5], [0, 6], [1, 5], [1, 6]]


@pytest.mark.parametrize(
    "loop",
    [
        lambda n, x: jax.lax.fori_loop(0, n[0], lambda i, x: _call(2)(n, x), x),
        lambda n, x: jax.lax.cond(n[0] > 0, lambda x: _call(2)(n, x), lambda x: x, x),
    ],
)
def test_a_kernel_that_runs_as_often_as_an_argument_says_is_refused(loop):
    with pytest.raises(NotImplementedError, match="how often it runs"):
        tables(_lowered(loop, (4,), (16, 128)))


def test_loops_without_kernels_are_not_followed():
    def loop(n, x):
        table = jax.lax.fori_loop(0, 3, lambda i, y: y + i, jnp.zeros(4, jnp.int32))
        return _call(2)(table, jax.lax.fori_loop(0, n[0], lambda i, y: y + 1, x))

    (found,) = tables(_lowered(loop, (4,), (16, 128)))
    assert len(found.runs) == 1


def test_runs_add_up():
    assert total([Count(9, 2, 3, 4, 5, 6), Count(1, 1, 1, 1, 1, 1)]) == Count(10, 3, 4, 5, 6, 7)


def test_bytes_between_kernels():
    text = """HloModule m
%fused { %p = f32[9,9]{1,0} parameter(0) }
ENTRY %main {
  %a = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0), sharding={replicated}
  %c = (f32[4,8]{1,0}, s32[2]{0}) custom-call(%a), custom_call_target="tpu_custom_call"
  %g = f32[4,8]{1,0} get-tuple-element(%c), index=0
  %copy.1 = bf16[4,8]{0,1} copy(%a)
  %s = (bf16[4,8]{1,0}, bf16[4,8]{0,1}, u32[]{:S(2)}) copy-start(%a)
  %d = bf16[4,8]{0,1} copy-done(%s)
  ROOT %f = f32[8]{0} fusion(%g, %copy.1), kind=kLoop, calls=%fused
}
"""
    assert _tpu_worker.between_bytes(text) == (64 + 64) + 2 * 64 + (8 * 4 + 128 + 64)


# Chips, cases, targets


def test_chips_reach_their_published_peaks():
    peaks = {name: round(chip.peak / 1e12) for name, chip in CHIPS.items()}
    assert peaks == {"v4": 275, "v5e": 197, "v5p": 459, "v6e": 918, "tpu7x": 918}
    for chip in CHIPS.values():
        assert chip.topology.startswith(chip.name)
        assert chip.multiply_adds * chip.feed % (16 * 128 * 128) == 0
        assert chip.flags.startswith("--xla_")


def test_cases_cover_what_is_promised():
    found = _tpu_cases.cases()
    assert len({case.name for case in found}) == len(found) == 4 * 2 * (4 + 4 + 1)
    assert {case.chip for case in found} == {"v5e", "v5p", "v6e", "tpu7x"}
    assert set(_tpu_cases.QUICK) < {case.name for case in found}
    targets = {(case.mask, case.t): case.target for case in found}
    assert {targets["full", t] for t in (2048, 4096, 8192, 16384)} == {1.0}
    assert [targets["causal", t] for t in (2048, 4096, 8192, 16384)] == [0.80, 0.85, None, 0.95]
    assert targets["window", 16384] == 0.9
    of_units = {(case.chip, case.mask, case.d): case.utilisation_target for case in found}
    assert {key: value for key, value in of_units.items() if value} == {
        ("v5p", "full", 128): 0.93,
        ("v5e", "full", 128): 0.85,
    }


@pytest.mark.parametrize("mask", _tpu_cases.MASKS)
@pytest.mark.parametrize("t", [64, 1500])
def test_attended_pairs_agree_with_brute_force(mask, t):
    i, j = np.mgrid[:t, :t]
    attend = {"full": i >= 0, "causal": j <= i, "window": (j <= i) & (j > i - _tpu_cases.WINDOW)}[mask]
    case = Case("v5e", mask, 2, 3, t, 64, "fwdbwd")
    assert _tpu_cases.attended_pairs(case) == attend.sum()
    assert case.flops == 4 * 64 * 6 * attend.sum() * 3.5


@pytest.mark.parametrize("case", _tpu_cases.cases(), ids=lambda case: case.name)
def test_fewer_heads_are_walked_evenly(case):
    walked = case.walked()
    assert (walked.b * walked.h) % 2 == 0
    assert case.b * case.h % (walked.b * walked.h) == 0
    assert dataclasses.replace(walked, b=case.b, h=case.h) == case


def test_splash_settings_fit_every_case():
    for case in _tpu_cases.cases():
        near, settings = _tpu_contenders.near_settings(case), _tpu_contenders.splash_settings(case)
        assert settings[: len(near)] == near
        assert len({json.dumps(one, sort_keys=True) for one in settings}) == len(settings)
        assert all(("backward" in one) == case.backward for one in settings)
        for tiles in (one[name] for one in settings for name in ("tiles", "backward") if name in one):
            assert all(case.t % size == 0 for size in tiles)
            assert tiles[1] % tiles[2] == 0
        large = [one for one in settings if 4096 in one["tiles"]]
        assert {one["scheduler"] for one in large} == ({False, True} if case.t >= 4096 else set())


needs_tokamax = pytest.mark.skipif(not published(), reason="tokamax is not installed")


@needs_tokamax
@pytest.mark.parametrize(
    "case", [c for c in _tpu_cases.cases(["v5e"]) if c.mask != "window"], ids=lambda case: case.name
)
def test_splash_gets_every_setting_of_tokamaxs_cache(case):
    settings = _tpu_contenders.splash_settings(case)
    near = _tpu_contenders.near_settings(case)
    for entry in published():
        config = entry.config
        here = (entry.case.mask, entry.case.t, entry.case.d) == (case.mask, case.t, case.d)
        found = near if here else settings
        fit = lambda names, config=config: [min(config[name], case.t) for name in names]
        if entry.case.direction != "bwd":
            tiles = fit(("block_q", "block_kv", "block_kv_compute"))
            layouts = "".join(name for name in "qkv" if config[f"{name}_layout"] == 2)
            same = [one["scheduler"] for one in found if (one["tiles"], one["transposed"]) == (tiles, layouts)]
            assert set(same) == {False, True}
        elif case.backward:
            tiles = fit(("block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute"))
            assert {one["scheduler"] for one in found if one["backward"] == tiles} == {False, True}


@needs_tokamax
def test_published_times_are_read():
    entries = published()
    assert len({(one.case, one.group) for one in entries}) == len(entries)
    count = lambda *directions: sum(one.case.direction in directions for one in entries)
    assert count("fwd", "lse") >= 76
    assert count("bwd") >= 36
    grouped = Case("tpu7x", "causal", 32, 32, 4096, 128, "fwd")
    assert [one.group for one in entries if one.case == grouped] == [4]
    assert all(one.milliseconds > 0 for one in entries)
    assert all(one.case.h % one.group == one.case.walked().h % one.group == 0 for one in entries)


def test_entries_that_are_no_plain_call_are_left_out(tmp_path, monkeypatch):
    call = {"q": "bf16[2,512,4,64]", "k": "bf16[2,512,2,64]", "return_residuals": False, "mask": {"is_causal": True}}
    call |= dict.fromkeys(_tpu_published.PLAIN)
    calls = [call, {**call, "q": "f32[2,512,4,64]"}, {**call, "logits_soft_cap": 30.0}]
    calls.append({**call, "mask": {"is_causal": True, "k_start": "i32[512]"}})
    folder = tmp_path / "data" / "autotuning" / "tpu_v6_lite"
    folder.mkdir(parents=True)
    times = {json.dumps({"block_q": 512}): {"evaluation_times_ms": [3.0, 1.0, 2.0]}, "{}": {"evaluation_times_ms": []}}
    text = json.dumps({json.dumps(one): times for one in calls})
    (folder / "pallas_mosaic_tpu_flash_attention.json").write_text(text)
    (folder / "pallas_mosaic_tpu_flash_attention_vjp.json").write_text("")
    spec = importlib.machinery.ModuleSpec("tokamax", None)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    case = Case("v6e", "causal", 2, 4, 512, 64, "fwd")
    assert published.__wrapped__() == (_tpu_published.Published(case, 2, {"block_q": 512}, 2.0),)


NEAR_AND_ALL = (_tpu_contenders.near_settings, _tpu_contenders.splash_settings)

# Estimates


CASE = Case("v5e", "full", 4, 16, 16384, 128, "fwdbwd")


def counts(cycles: int, startup: int = 0) -> dict[str, int]:
    return {"cycles": cycles, "startup": startup, "dma_stall": 0, "matrix_stall": 0, "dma_bytes": 0, "products": 1}


def contender(**changes) -> _tpu_contenders.Contender:
    settings = [{"n": n, "layout": n // 2} for n in range(4)]
    base = _tpu_contenders.Contender("splash", "numpy", lambda case: settings, lambda case, setting: None)  # pyright: ignore
    return dataclasses.replace(base, split=lambda setting: str(setting["layout"]), **changes)


def test_estimate_takes_the_best_that_one_call_may_mix():
    cycles = {0: (10, 90), 1: (20, 50), 2: (40, 41), 3: (30, 60)}

    def answer(case, setting):
        assert (case.b, case.h) == (1, 2)
        if setting["n"] == 3:
            return {"error": "RuntimeError: out of memory"}
        forward, backward = (1500 * value for value in cycles[setting["n"]])
        kernels = {"forward.1": counts(forward), "backward.1": counts(backward, startup=1500)}
        return {"kernels": kernels, "between_bytes": 819 * setting["n"]}

    found = estimate(CASE, contender(), answer)
    scale = 4 * 16 / 2
    assert found.milliseconds == pytest.approx((10 * scale + 1 + 49 * scale) * 1e-3)
    assert found.kernels is not None
    assert [found.kernels[name]["setting"]["n"] for name in ("forward.1", "backward.1")] == [0, 1]
    assert found.end_to_end == found.milliseconds
    assert (found.counted, found.of) == (4, 4)
    assert found.errors == ['{"n": 3, "layout": 1}: RuntimeError: out of memory']
    assert found.utilisation(CASE) == pytest.approx(CASE.flops / (1e-3 * found.milliseconds * V5E.peak))


def test_end_to_end_has_its_own_best_setting():
    def answer(case, setting):
        assert setting["n"] < 3
        return {
            "kernels": {"forward.1": counts(1500 * (10 + setting["n"]))},
            "between_bytes": 819e6 * (3 - setting["n"]),
        }

    found = estimate(CASE, contender(), lambda case, setting: None if setting["n"] == 3 else answer(case, setting))
    assert found.milliseconds == pytest.approx(0.01 * 32)
    assert found.end_to_end == pytest.approx(0.012 * 32 + 1 * 32)
    assert (found.counted, found.of) == (3, 4)


def test_nothing_compiled():
    found = estimate(CASE, contender(), lambda case, setting: {"error": "no"})
    assert (found.milliseconds, found.utilisation(CASE), len(found.errors)) == (None, None, 4)


def test_kept_answers_are_not_counted_again(tmp_path, monkeypatch):
    monkeypatch.setattr("bench._tpu_estimate._versions", lambda package: f"{package}==1")
    asked = []

    def answer(case, name, setting):
        asked.append(setting["n"])
        return {"kernels": {}, "between_bytes": setting["n"]}

    path = tmp_path / "kept.json"
    for _ in range(2):
        kept = Kept(path)
        for n in (1, 2):
            assert kept.count(answer, CASE, contender(cached=True), {"n": n})["between_bytes"] == n
    assert asked == [1, 2]
    kept.count(answer, CASE, contender(cached=False), {"n": 1})
    kept.count(answer, dataclasses.replace(CASE, h=8), contender(cached=True), {"n": 1})
    assert asked == [1, 2, 1, 1]
    died = {"error": "the compiler died", "died": True}
    assert kept.count(lambda *_: died, CASE, contender(cached=True), {"n": 3}) == died
    assert kept.count(answer, CASE, contender(cached=True), {"n": 3}, fresh=False) is None
    assert kept.count(answer, CASE, contender(cached=True), {"n": 3})["between_bytes"] == 3
    assert list(tmp_path.iterdir()) == [path]


# What is written


def row(chip: str, mask: str, t: int, jattn: float | None, splash: float | None) -> _tpu_report.Row:
    case = next(case for case in _tpu_cases.cases([chip], [mask], directions=["fwd"]) if case.t == t)
    ends = [None if time is None else time + 0.5 for time in (jattn, splash)]
    jattn_estimate = Estimate(jattn, ends[0], errors=["too large"], counted=1, of=1)
    return _tpu_report.Row(case, {"jattn": jattn_estimate, "splash": Estimate(splash, ends[1], counted=8, of=40)})


def test_table_says_what_was_met():
    columns = _tpu_report.columns(["jattn", "splash"])
    head = _tpu_report.header(columns)
    lines = [
        _tpu_report.line(columns, one).split()
        for one in (
            row("v5e", "full", 2048, 1.49, 1.5),
            row("v5e", "full", 2048, 1.8, 1.5),
            row("v6e", "causal", 4096, 0.5, 0.6),
            row("v6e", "causal", 8192, 0.9, 0.6),
            row("v6e", "causal", 4096, None, 0.6),
        )
    ]
    assert "ratio  target" in head
    assert lines[0] == [
        "v5e",
        "full",
        "fwd",
        "8x16x2048x128",
        "1.49",
        "94%",
        "1.99",
        "1.50",
        "93%",
        "2.00",
        "0.995",
        "0.993",
        "1.00",
        "met",
        "85%",
        "met",
    ]
    assert lines[1][-5:] == ["1.20", "1.00", "MISSED", "85%", "MISSED"]
    assert lines[2][-4:] == ["0.833", "0.850", "met", "-"]
    assert lines[3][-3:] == ["1.50", "-", "-"]
    assert lines[4][4:7] == ["-", "-", "-"]
    assert lines[4][-3:] == ["-", "0.850", "-"]


def test_table_without_peers():
    columns = _tpu_report.columns(["jattn"])
    alone = dataclasses.replace(row("v5p", "full", 2048, 0.6, None), estimates={"jattn": Estimate(0.6)})
    assert "splash" not in _tpu_report.header(columns)
    assert _tpu_report.line(columns, alone).endswith("93%  met")
    assert _tpu_report.summary([alone]).startswith(
        "utilisation: 1 of 1 targets met; worst: v5p-full-t2048-d128-fwd, 0.999"
    )


def test_summary_names_the_worst_and_what_failed():
    rows = [
        row("v6e", "full", 2048, 1.1, 1.0),
        row("v6e", "causal", 2048, 0.9, 1.0),
        row("v6e", "full", 4096, None, 1.0),
    ]
    text = _tpu_report.summary(rows)
    assert "jattn / splash: 0 of 2 targets met; worst: v6e-causal-t2048-d128-fwd, 0.900, target <= 0.800" in text
    assert "v6e-full-t4096-d256-fwd: no estimate for jattn: too large" in text
    assert "splash: 24 of its 120 settings are counted; --settings all counts the others" in text
    document = json.loads(json.dumps([one.as_json() for one in rows]))
    assert document[0]["estimates"]["jattn"]["milliseconds"] == 1.1
    assert document[2]["estimates"]["jattn"]["utilisation"] is None


def test_tables_of_the_readme(monkeypatch):
    case = row("tpu7x", "full", 2048, None, None).case
    entry = _tpu_published.Published(case, 1, {}, 0.956)
    monkeypatch.setattr(
        _tpu_report, "published", lambda: (entry, dataclasses.replace(entry, group=4, milliseconds=1.0))
    )
    rows = [
        row("v5e", "full", 2048, 1.4, 1.5),
        row("tpu7x", "full", 2048, 0.7, 0.8),
        row("v5e", "causal", 2048, 1, None),
    ]
    assert _tpu_report.markdown(rows).splitlines() == [
        "| mask | b h t d | v5e kernels | v5e + XLA | tpu7x kernels | tpu7x + XLA | tpu7x splash, timed |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| full | 8 16 2048 128 | 1.40 / 1.50 | 1.90 / 2.00 | 0.700 / 0.800 | 1.20 / 1.30 | 0.956 |",
        "| causal | 8 16 2048 128 | 1.00 / - | 1.50 / - | - | - | - |",
    ]


def test_spread_is_by_chip_pass_width_and_length():
    entries = [
        _tpu_published.Published(Case("tpu7x", "full", 8, 16, 2048, d, direction), 1, {"n": n}, milliseconds)
        for n, (d, direction, milliseconds) in enumerate(
            [(64, "bwd", 1.0), (128, "fwd", 1.0), (128, "fwd", 2.0), (256, "fwd", 4.0), (256, "fwd", 5.0)]
        )
    ]
    times = [0.5, 0.9, 2.0, 3.6, None]

    def answer(case, setting):
        milliseconds = times[setting["config"]["n"]]
        return milliseconds and {"kernels": {"a.1": counts(round(1.75e6 * milliseconds))}, "between_bytes": 0}

    found = _tpu_spread.compare(entries, answer)
    assert [one.ratio for one in found] == [0.5, 0.9, 1.0, 0.9, None]
    first, _, *rest = _tpu_spread.table(found).splitlines()
    assert first.startswith("Estimate over published time, 4 of the 5 times in tokamax's cache; 1 not counted yet")
    assert [one.split() for one in rest] == [
        ["tpu7x", "forward", "d", "128", "2", "0.90", "0.95", "1.00"],
        ["tpu7x", "forward", "d", "256", "1", "0.90", "0.90", "0.90"],
        ["tpu7x", "forward", "t", "2048", "3", "0.90", "0.90", "1.00"],
        ["tpu7x", "forward", "all", "3", "0.90", "0.90", "1.00"],
        ["tpu7x", "backward", "d", "64", "1", "0.50", "0.50", "0.50"],
        ["tpu7x", "backward", "t", "2048", "1", "0.50", "0.50", "0.50"],
        ["tpu7x", "backward", "all", "1", "0.50", "0.50", "0.50"],
    ]
    assert _tpu_spread.line(found[1]).split() == [
        "tpu7x-full-t2048-d128-fwd",
        "8x16x2048x128",
        "1.000",
        "0.900",
        "0.900",
    ]


# The command lines


class StandIn:
    """A compiler that answers at once: splash's time depends on its tiles; jattn takes 1.2 ms."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def count(self, case, name, setting):
        forward, backward = setting.get("forward", {}), setting.get("backward", {})
        if setting.get("tiles", [0])[0] == 2048 or forward.get("query") == 2048:
            return {"error": "RuntimeError: too large"}
        if forward:  # the best are those with the other scheduler forward, of the smallest step
            both = counts(1000 if "scheduler" in forward else 2000), counts(backward["step"])
            return {
                "kernels": dict(zip((f"{name}_forward.1", f"{name}_backward.1"), both, strict=True)),
                "between_bytes": 0,
            }
        size = sum(setting.get("tiles", [1200]))
        return {"kernels": {f"{name}_forward.1": counts(1500 * size), f"{name}_backward.1": counts(3000000 - size)}, "between_bytes": 0}  # fmt: skip


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(tpu, "Compiler", StandIn)
    monkeypatch.setattr(tune, "Compiler", StandIn)
    monkeypatch.setattr(tpu, "missing", lambda modules: [])
    monkeypatch.setattr(tune, "missing", lambda modules: [])
    monkeypatch.setattr("bench._tpu_estimate._versions", lambda package: f"{package}==1")


def test_tpu_end_to_end(tmp_path, capsys, stand_in):
    arguments = ["tpu", "--chip", "v5e", "--mask", "full", "--pass", "fwd", "--shape", "8x16x2048x128"]
    assert bench.main([*arguments, "--out", str(tmp_path), "--kept", str(tmp_path / "tpu_kept.json")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "v5e full fwd 8x16x2048x128 3.20 44%" in printed
    names = ["tpu.json", "tpu.md", "tpu.txt", "tpu_kept.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    document = json.loads((tmp_path / "tpu.json").read_text())
    assert document["complete"]
    assert [one["name"] for one in document["rows"]] == ["v5e-full-t2048-d128-fwd"]
    near, settings = (f(Case("v5e", "full", 8, 16, 2048, 128, "fwd")) for f in NEAR_AND_ALL)
    assert len(json.loads((tmp_path / "tpu_kept.json").read_text())) == len(near)
    assert f"splash: {len(near)} of its {len(settings)} settings are counted" in printed or len(near) == len(settings)


@pytest.mark.parametrize("which", ["kept", "all"])
def test_tpu_counts_what_is_asked_for(which, tmp_path, capsys, stand_in):
    arguments = ["tpu", "--chip", "v5e", "--mask", "full", "--pass", "fwd", "--shape", "8x16x2048x128"]
    path = tmp_path / "tpu_kept.json"
    assert bench.main([*arguments, "--settings", which, "--out", str(tmp_path), "--kept", str(path)]) == 0
    _, settings = (f(Case("v5e", "full", 8, 16, 2048, 128, "fwd")) for f in NEAR_AND_ALL)
    if which == "kept":
        assert not path.exists()
        assert "no estimate for splash: no setting is counted" in capsys.readouterr().out
    else:
        assert len(json.loads(path.read_text())) == len(settings)


@needs_tokamax
def test_tpu_published(tmp_path, capsys, stand_in):
    arguments = ["tpu", "--published", "--filter", "full-t2048-d128", "--kept", str(tmp_path / "tpu_kept.json")]
    assert bench.main([*arguments, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "3 of the 3 times" in printed
    assert (tmp_path / "tpu_published.txt").read_text() in printed


@pytest.mark.parametrize(
    "arguments", [["--help"], ["cpu", "--help"], ["tpu", "--help"], ["tune", "--help"], ["zoo", "--help"]]
)
def test_help(arguments):
    found = subprocess.run([sys.executable, "-m", "bench", *arguments], capture_output=True, text=True, check=True)
    assert found.stdout.startswith("usage: ")
    assert not found.stderr


def test_no_subcommand(capsys):
    assert bench.main([]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.split()[:2]) == ("", ["usage:", "python"])


@pytest.mark.parametrize("case", [Case(chip, mask, 1, 16, 16384, d, "fwdbwd") for chip in CHIPS for mask in ("full", "causal", "window") for d in (64, 256)], ids=str)  # fmt: skip
def test_candidates_are_sizes(case):
    for candidates in tune.candidates(case).values():
        assert len(candidates) > 2
        for sizes in candidates:
            Sizes(**sizes)


def test_tune_fills_the_table_and_resumes(tmp_path, capsys, stand_in, monkeypatch):
    table = tmp_path / "tables" / "tpu.json"
    arguments = ["tune", "tpu", "--chip", "v5e", "--mask", "full", "--t", "2048", "--table", str(table)]
    assert bench.main(arguments) == 0
    rows = json.loads(table.read_text())
    found = {row["direction"]: row for row in rows}
    assert found["forward"]["sizes"]["scheduler"]
    assert found["backward"]["sizes"]["step"] == 256
    assert {(row["chip"], row["d"], row["t"], row["mask"], row["pairs"]) for row in rows} == {
        ("v5e", 128, 2048, "full", 2048**2)
    }
    for row in rows:  # the table is what the kernels read
        Sizes(**tuned.Entry(**row).sizes)
    monkeypatch.setattr(tune, "estimate", lambda *_: pytest.fail("estimated again"))
    assert bench.main(arguments) == 0
    assert "2 rows in" in capsys.readouterr().out
    monkeypatch.setattr(tune, "estimate", lambda *_: {})
    assert bench.main([*arguments, "--again"]) == 2
    assert "no candidate compiled for v5e-full-t2048-d128-fwdbwd" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tpu", "--filter", "nothing"], "bench tpu: no case matches; names look like v5e-causal-t2048-d128-fwd"),
        (["tpu", "--chip", "v3"], "bench tpu: argument --chip: 'v3' is not a comma-separated choice of v4,"),
        (["tpu", "--shape", "1x2x3x4"], "bench tpu: argument --shape: '1x2x3x4' is not a comma-separated choice of"),
        (["tune"], "bench tune: the following arguments are required: platform"),
        (["tune", "tpu", "--t", "0"], "bench tune: argument --t: '0' is not a positive integer"),
    ],
)
def test_errors_are_one_line(arguments, message, capsys, stand_in):
    try:
        status = bench.main(arguments)
    except SystemExit as stop:
        status = stop.code
    printed = capsys.readouterr()
    assert (status, printed.out, printed.err.count("\n")) == (2, "", 1)
    assert printed.err.startswith(message)


def test_missing_packages_are_a_hint(capsys, monkeypatch):
    monkeypatch.setattr(tpu, "missing", lambda modules: [name for name in modules if name in ("libtpu", "tokamax")])
    assert bench.main(["tpu"]) == 2
    assert capsys.readouterr().err == "bench tpu: libtpu not installed: pip install 'jattn[aot,bench]'\n"
    assert bench.main(["tpu", "--peers", "splash"]) == 2
    assert "libtpu and tokamax not installed" in capsys.readouterr().err


def test_the_compilers_environment(tmp_path):
    found = _tpu_compile.environment(tmp_path)
    assert found["JAX_PLATFORMS"] == "cpu"
    assert f"--xla_jf_dump_to={tmp_path} --xla_jf_dump_llo_text=true" in found["LIBTPU_INIT_ARGS"]


def test_a_compiler_that_dies_is_an_answer(monkeypatch):
    monkeypatch.setattr(_tpu_compile.sys, "executable", "false")
    with _tpu_compile.Compiler() as compiler:
        assert compiler.count(CASE, "jattn", {})["error"].startswith("the compiler died with status 1")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_jattn_is_compiled_and_counted():
    with _tpu_compile.Compiler() as compiler:
        answer = compiler.count(Case("v5e", "causal", 1, 2, 512, 128, "fwd"), "jattn", {})
        wrong = compiler.count(Case("v5e", "causal", 1, 2, 512, 128, "fwd"), "jattn", {"forward": {"query": 100}})
    (kernel,) = answer["kernels"].values()
    assert kernel["products"] * 16 * 128 * 128 >= 2 * 2 * (512 * 512 // 2) * 128
    assert kernel["dma_bytes"] >= 4 * 2 * 512 * 128 * 2
    assert "error" in wrong
