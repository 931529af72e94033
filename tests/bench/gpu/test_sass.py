"""Loops of machine code, on what nvdisasm printed for kernels of ours."""

from pathlib import Path

import pytest

from bench.gpu._sass import Code, Instruction, copying_loop, hot_loops, parse

HERE = Path(__file__).parent


def _code(text: str) -> Code:
    lines = text.strip().splitlines()
    return parse(
        "\n".join(
            x if x.startswith(".") else f"        /*{n:04x}*/                   {x} ;" for n, x in enumerate(lines)
        )
    )


def test_hopper_has_a_loop_for_full_tiles_and_one_for_partial_ones():
    code = parse((HERE / "sm_90a_forward.txt").read_text())
    full, partial = hot_loops(code)
    assert (full.instructions, partial.instructions) == (57, 67)
    for loop in (full, partial):
        assert loop.pipes["tensor"] == 16
        # a warp's quarter of 64 x 128 scores, for a product of width 128 each with keys and values
        assert loop.products == 64 * 128 * (128 + 128) // 4
        assert not loop.loaded
    assert partial.pipes["integer"] > full.pipes["integer"]  # positions


def test_a_wait_behind_the_kernel_is_no_part_of_a_loop():
    """The assembler puts retries of barriers at the end, with a jump back into the loop: over all there is."""
    code = parse((HERE / "sm_90a_forward.txt").read_text())
    assert max(loop.start + loop.instructions for loop in hot_loops(code)) < len(code.instructions) - 60


def test_ampere_multiplies_by_warps():
    code = parse((HERE / "sm_80_forward.txt").read_text())
    (loop,) = hot_loops(code)
    assert loop.pipes["tensor"] == 17
    assert loop.products == 17 * 16 * 8 * 16


def test_blackwell_counts_those_who_read_what_was_multiplied():
    code = _code("""
.L_x_1:
UTCHMMA gdesc[UR10], gdesc[UR8], tmem[UR6], tmem[UR34], idesc[UR35], !UPT
UTCBAR [UR19], URZ
BRA.U UP0, `(.L_x_1)
.L_x_2:
SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR5+0x19408], R0
LDTM.16dp256bit.x8 R76, tmem[UR6]
LDTM.16dp256bit.x8 R44, tmem[UR6+0x40]
LDTM.x16 R44, tmem[UR6+0x40]
MUFU.EX2 R4, R4
@P0 BRA `(.L_x_2)
EXIT
""")
    (loop,) = hot_loops(code)
    assert loop.loaded == 32 + 32 + 16
    assert loop.start == 3
    alone = _code(".L_x_1:\nUTCHMMA gdesc[UR10], gdesc[UR8], tmem[UR6]\nBRA.U UP0, `(.L_x_1)\nEXIT")
    assert [x.pipes for x in hot_loops(alone)] == [{"tensor": 1, "branch": 1}]


def test_the_innermost_loop_counts():
    code = _code("""
.L_x_0:
HMMA.16816.F32.BF16 R4, R8, R10, R4
.L_x_1:
HMMA.16816.F32.BF16 R4, R8, R10, R4
FADD R1, R1, R2
.L_x_2:
SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR5], R0
@!P1 BRA `(.L_x_2)
@P2 BRA `(.L_x_1)
BRA `(.L_x_0)
""")
    (loop,) = hot_loops(code)
    assert (loop.start, loop.instructions) == (1, 5)


def test_who_copies_has_a_loop_of_its_own():
    computing = ".L_x_1:\nHGMMA.64x64x16.F32.BF16 R24, R4, gdesc[UR4]\n@P0 BRA `(.L_x_1)\nEXIT"
    copying = ".L_x_0:\nUTMALDG.4D [UR8], [UR4]\nLOP3.LUT R1, R2, R3\n@P1 BRA `(.L_x_0)\n"
    assert copying_loop(_code(copying + computing)) == 3
    assert copying_loop(_code(computing)) == 0


def test_code_without_loops_or_without_products_has_no_hot_loop():
    assert hot_loops(_code("HMMA.16816.F32.BF16 R4, R8, R10, R4\nEXIT")) == []
    assert hot_loops(_code(".L_x_0:\nFADD R1, R1, R2\n@P0 BRA `(.L_x_0)\nEXIT")) == []
    assert hot_loops(parse("")) == []


@pytest.mark.parametrize(
    ("name", "pipe"),
    [
        ("HGMMA.64x128x16.F32.BF16", "tensor"), ("UTCHMMA", "tensor"), ("HMMA.16816.F32", "tensor"), ("MUFU.EX2", "special"),
        ("FMNMX", "compare"), ("FMNMX3", "compare"), ("FFMA.FTZ", "float"), ("F2FP.BF16.F32.PACK_AB", "convert"), ("I2FP.F32.S32", "convert"), ("LOP3.LUT", "integer"),
        ("IMAD.WIDE.U32", "multiply"), ("SEL", "integer"), ("FSEL", "compare"), ("LDL.64", "local"), ("STL", "local"), ("LDS.U", "memory"),
        ("UTMALDG.4D", "memory"), ("LDTM.x32", "memory"), ("LDGDEPBAR", "wait"), ("LDGSTS.E", "memory"), ("REDUX.MAX", "shuffle"), ("RED.E", "memory"),
        ("SHFL.BFLY", "shuffle"), ("R2UR", "move"), ("UMOV", "move"), ("UIADD3", "uniform"), ("SYNCS.ARRIVE", "wait"), ("BRA", "branch"), ("XYZ", "other"),
    ],
)  # fmt: skip
def test_pipes(name, pipe):
    assert Instruction(name).pipe == pipe


def test_guards_and_operands():
    code = parse(
        "        /*07f0*/               @!UP1 BRA `(.L_x_0) ;\n        /*0800*/                   { IMAD.MOV.U32 R1, RZ, RZ, R2 ;"
    )
    assert code.instructions == [
        Instruction("BRA", "!UP1", "`(.L_x_0)"),
        Instruction("IMAD.MOV.U32", "", "R1, RZ, RZ, R2"),
    ]
