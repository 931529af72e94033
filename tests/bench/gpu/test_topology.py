"""GPUs as they are described to the compiler."""

import pytest
from jattn_kernels.chips import GPUS, of_kind

from bench.gpu import _topology


@pytest.mark.parametrize("name", GPUS)
def test_every_gpu_can_be_described(name):
    chip = GPUS[name]
    assert of_kind(chip.card) is chip
    text = _topology.target_config(chip)
    assert f"core_count: {chip.cores} " in text
    assert f"cuda_compute_capability {{ major: {chip.capability[0]} minor: {chip.capability[1]} " in text
    assert f"shared_memory_per_block_optin: {chip.granted} " in text
    assert text.count("{") == text.count("}")


def test_architectures():
    got = {name: _topology.architecture(chip) for name, chip in GPUS.items()}
    assert got == {"a100": "sm_80", "l4": "sm_89", "h100": "sm_90a", "h200": "sm_90a", "b200": "sm_100a"}
