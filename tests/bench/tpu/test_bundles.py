"""Dumps of bundles are read."""

import dataclasses

import pytest

from bench.tpu._bundles import Instruction, parse, split
from tests.bench.tpu.bundles import RECORDED, program


def test_recorded_dump_is_read_whole():
    got = parse(RECORDED.read_text())
    assert len(got.bundles) == 0x9C
    assert (got.regions[96], got.regions[85], got.regions[79], got.regions[28]) == (0xC, 0x44, 0x7F, 0x8B)
    assert sum(len(bundle.products) for bundle in got.bundles) == 8
    assert got.bundles[0x5D].products == ((0, 1.0), (1, 1.0))
    ops = {one.op for bundle in got.bundles for one in bundle.scalar}
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
    (got,) = program(text).bundles[0].scalar
    assert dataclasses.replace(got, text="") == expected


def test_vector_instructions_are_dropped_and_products_counted():
    got = program(
        "%v1_v0 = vld [vmem:[%s1_s0] sm:$0xff]  ;;  %3 = vst [vmem:[%s1_s0]] %v1_v0  ;;  %5 = vsyncpa [#a], 1"
    )
    assert got.bundles[0].plain
    got = program("%1 = vmatmul.bf16.gmra.mxu3 %v1_v1  ;;  %2 = vmatmul.mubr.f32.vlgmr.msra.gmra.mrb[4].mxu0 %v1_v1")
    assert got.bundles[0].products == ((3, 1.0), (0, 0.5))


def test_meeting_paths_take_effect_first_and_stores_last():
    got = program("%1 = sst [smem:[#a]] %s1_s0  ;;  %s1_s0 = sadd.s32 %s2_s0, 1  ;;  %s2_s0 = sphi %s3_s0, %s1_s0")
    assert [one.op for one in got.bundles[0].scalar] == ["sphi", "sadd.s32", "sst"]


def test_split_and_no_bundles():
    assert split("[#a + %s1], (%p1, %s2), 4") == ["[#a + %s1]", "(%p1, %s2)", "4"]
    with pytest.raises(ValueError, match="no bundles"):
        parse("not a dump")
