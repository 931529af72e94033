"""What assembler and dumps say of a kernel."""

import json

import pytest
from jattn_kernels.chips import GPUS

from bench.gpu import _kernels
from bench.gpu._kernels import CompiledKernel, from_json
from bench.gpu._sass import Loop

KERNEL = CompiledKernel("jattn_forward", 384, 168, 12, 166912, [Loop(7, {"tensor": 16, "float": 4}, 1024, 0)])


def test_report_of_the_assembler():
    said = """ptxas info    : Compiling entry function 'k' for 'sm_90a'
    272 bytes stack frame, 300 bytes spill stores, 304 bytes spill loads
ptxas info    : Used 255 registers, used 2 barriers, 272 bytes cumulative stack size, 1 bytes smem"""
    assert _kernels.assembler_report(said) == (255, 604)
    with pytest.raises(RuntimeError, match="how many registers"):
        _kernels.assembler_report("")


def test_threads_and_shared_memory():
    assert _kernels.threads(".visible .entry k(\n)\n.maxntid 384, 1, 1\n.minnctapersm 1") == 384
    assert _kernels.threads(".reqntid 64, 2") == 128
    with pytest.raises(RuntimeError, match="how many threads"):
        _kernels.threads("")
    assert _kernels.shared_bytes("Resources(smem_scratch_bytes=166912, tmem_scratch_cols=0)") == 166912
    assert _kernels.shared_bytes("") is None


@pytest.mark.parametrize(
    ("threads", "registers", "shared", "blocks"),
    [
        (384, 168, 166912, 1),  # shared memory
        (384, 168, 1024, 1),  # registers: 168 * 384 = 64512 of 65536
        (128, 229, 65536, 2),  # registers: rounded up to 232, two blocks
        (128, 32, None, 16),  # threads
        (128, 32, 233473, 0),  # fits nowhere
    ],
)
def test_blocks_of_a_multiprocessor(threads, registers, shared, blocks):
    assert CompiledKernel("k", threads, registers, 0, shared, []).blocks_per_core(GPUS["h100"]) == blocks


def test_kernels_pass_through_json():
    document = json.loads(json.dumps(KERNEL.as_json(GPUS["h100"])))
    assert document["blocks_per_core"] == 1
    assert document["loops"][0]["instructions"] == 20
    assert from_json(document) == KERNEL
