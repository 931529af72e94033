"""The scalar core: registers, SMEM, integers, addresses."""

import numpy as np
import pytest

from bench.tpu._scalar import ScalarCore, WalkError, words
from tests.bench.tpu.bundles import program


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
        ("spop %7", 0),
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
        ("scmp.gt.f32.partialorder 0, 0.0", False),
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
    got = [core.registers.get(f"%s{n}_s{n}") for n in (3, 4, 5, 6, 7, 8)]
    assert got == [10, 10, 1, 1, 0, None]
    assert "%s2_s0" not in core.registers


def test_a_dynamic_bound_is_a_register():
    line = "%s1_s0 = inlined_call_operand.<no memory space> [shape: s32[], index: 0, kind: input]"
    for value in (np.array(6, np.int32), np.array([6], np.int32)):
        assert core_after(line, o0=value).registers["%s1_s0"] == 6
    assert core_after(line).registers["%s1_s0"] is None


def test_how_vectors_lie_in_scalar_memory():
    assert words(np.array([1, -2, 3], np.int32))[:4] == [1, -2, 3, 0]
    got = words(np.arange(600).astype(np.int8))
    assert len(got) == 256
    assert [(got[5] >> shift) & 255 for shift in (0, 8, 16, 24)] == [5, 133, 261 % 256, 389 % 256]
    assert got[128] & 255 == 512 % 256
    assert words(np.arange(300, dtype=np.int16))[1] == 1 + (129 << 16)
    with pytest.raises(WalkError, match=r"shape \(2, 3\)"):
        words(np.zeros((2, 3), np.int32))
