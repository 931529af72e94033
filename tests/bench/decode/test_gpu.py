"""Steps estimated from counted instructions, or from what they read."""

import dataclasses

import pytest
from jattn_kernels.chips import GPUS

from bench.decode import _gpu
from bench.decode._cases import Case
from bench.gpu import _static, _tools
from bench.gpu._kernels import CompiledKernel, from_json
from bench.gpu._sass import Loop

H100 = GPUS["h100"]
CASE = Case("contiguous", 8, 8192)


def _answer(instructions: int) -> dict:
    """Of a kernel whose loop computes 64 x 128 scores."""
    loop = Loop(0, {"float": instructions}, 64 * 128 * 256 // 4, 0)
    kernel = CompiledKernel("jattn_forward", 384, 168, 0, None, [loop])
    return {"kernels": [kernel.as_json(H100)] * 2, "between_bytes": 3_350_000, "starts": 11}


def test_a_step_waits_for_its_keys_and_values():
    asked = []
    (row,) = _gpu.estimate(CASE, "h100", lambda request: asked.append(request) or _answer(456))
    assert asked == [{"stage": "decode", "step": dataclasses.asdict(CASE), "chip": "h100"}]
    assert row.around is not None
    assert row.around == pytest.approx(3.35e9 / H100.bandwidth)
    assert row.milliseconds == pytest.approx(row.limit + row.around)
    assert (row.contender, row.starts) == ("jattn", 11)


def test_a_slow_kernel_takes_what_it_issues():
    (row,) = _gpu.estimate(CASE, "h100", lambda request: _answer(20_000))
    assert row.around is not None
    cycles = 8 * 8 * (8192 // 128) * 20_000 / H100.cores
    assert row.milliseconds == pytest.approx(1e3 * cycles / H100.clock + row.around)


def test_a_window_reads_what_it_sees():
    near, far = (next(_gpu.estimate(x, "h100", lambda request: _answer(456))) for x in (Case("window", 8, 8192), CASE))
    assert near.around is not None
    assert near.limit == far.limit / 8
    assert near.ratio == pytest.approx(1 + near.around / near.limit)


def test_what_does_not_compile_has_a_reason():
    (row,) = _gpu.estimate(Case("int8", 8, 8192), "l4", lambda request: {"error": "UnsupportedError: not int8"})
    assert row.milliseconds is None and "int8" in row.error


@pytest.mark.skipif(bool(_tools.obstacle()), reason=f"nothing compiles for GPUs here: {_tools.obstacle()}")
@pytest.mark.gpu
@pytest.mark.parametrize(("chip", "most"), [("h100", 1.05), ("b200", 2.1)])
def test_keys_of_8_bits_are_compiled(chip, most):
    """One warpgroup computes and one widens: on an H100 memory takes longest, by what there is to read of 8 bits, on a
    B200 their instructions do."""
    kernels = []

    def ask(request):
        answer = _static.ask(request)
        kernels.extend(map(from_json, answer["kernels"]))
        return answer

    (row,) = _gpu.estimate(Case("int8", 8, 8192), chip, ask)
    assert row.error == "" and row.milliseconds is not None
    assert row.limit < row.milliseconds < most * row.limit
    assert kernels[0].threads == 256 and kernels[0].spilled == 0
