"""What a program sends while it computes: read from two that the TPU compiler made, and from lines of others.

Both programs are one ring of eight v5e chips, in whose loop a permute stands before a branch that may call a kernel: in
`v5e_straight.txt` along a row of the torus, which XLA waits for, in `v5e_loop.txt` along a closed loop over two rows.
"""

from pathlib import Path

import pytest

from bench.scale._hlo import permutes

HERE = Path(__file__).parent
MODULE = """\
HloModule jit_f, is_scheduled=true

%sent (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %moved = f32[8]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
LINES
}
"""
KERNEL = '  %attend = f32[8]{0} custom-call(%a), custom_call_target="tpu_custom_call"'
OTHER = '  %topk = f32[8]{0} custom-call(%a), custom_call_target="TopK"'
START = (
    "  %start.1 = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%a), source_target_pairs={{0,1},{1,0}}"
)
DONE = "  %done.1 = f32[8]{0} collective-permute-done(%start.1)"


def test_along_a_row_the_loop_waits():
    (one,) = permutes((HERE / "v5e_straight.txt").read_text())
    assert (one.loop, one.asynchronous, one.encloses) == (True, False, ())
    assert one.bytes == 4 * 512 * 1024


def test_along_a_closed_loop_a_kernel_runs_meanwhile():
    (one,) = permutes((HERE / "v5e_loop.txt").read_text())
    assert (one.loop, one.asynchronous, one.encloses) == (True, True, ("add.6",))
    assert one.bytes == 4 * 512 * 1024


@pytest.mark.parametrize(
    ("lines", "encloses"),
    [
        ([START, KERNEL, DONE], ("attend",)),
        ([KERNEL, START, DONE], ()),
        ([START, DONE, KERNEL], ()),
        ([START, OTHER, DONE], ()),
        ([START, KERNEL.replace("tpu_custom_call", "mosaic_gpu_v2"), DONE], ("attend",)),
        ([START, DONE.replace("start.1", "start.10"), KERNEL, DONE], ("attend",)),
    ],
)
def test_what_stands_between_start_and_done(lines, encloses):
    (one,) = permutes(MODULE.replace("%sent (", "%unused (").replace("LINES", "\n".join(lines)))[1:]
    assert (one.name, one.loop, one.asynchronous, one.encloses, one.bytes) == ("start.1", False, True, encloses, 32)


def test_an_asynchronous_call_of_a_permute():
    start = "  %start = ((f32[8]{0}), f32[8]{0}, s32[]) async-start(%a), calls=%sent"
    (one,) = permutes(MODULE.replace("LINES", "\n".join([start, KERNEL, "  %d = f32[8]{0} async-done(%start)"])))
    assert (one.name, one.asynchronous, one.encloses) == ("start", True, ("attend",))


def test_nothing_is_said_of_an_unscheduled_module():
    with pytest.raises(ValueError, match="not scheduled"):
        permutes("HloModule jit_f\n")
