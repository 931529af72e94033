"""The table of chips: against what is published, against JAX's own table, and against the compiler."""

import dataclasses
import json
import subprocess
import sys

import pytest
from jattn_kernels import chips
from jattn_kernels.chips import CHIPS, GPUS, TPUS

from tests import aot

PUBLISHED = {  # Tflop/s of dense bfloat16 products; tpu7x: half a chip
    "v4": 275, "v5e": 197, "v5p": 459, "v6e": 918, "tpu7x": 2307 / 2,
    "a100": 312, "l4": 121, "h100": 989, "h200": 989, "b200": 2250,
}  # fmt: skip


@pytest.mark.parametrize("name", CHIPS)
def test_peaks_are_those_that_are_published(name):
    assert CHIPS[name].peak() == pytest.approx(1e12 * PUBLISHED[name], rel=2e-3)


def test_narrow_products_leave_part_of_a_unit_idle():
    v5e, v6e = CHIPS["v5e"], CHIPS["v6e"]
    assert v5e.peak(width=128) == v5e.peak(width=256) == v5e.peak() == 2 * v5e.peak(width=64)
    assert v6e.peak(width=256) == v6e.peak() == 2 * v6e.peak(width=128)
    assert v6e.peak(width=320) == v6e.peak() * 320 / 512
    assert v5e.peak("int8") == 2 * v5e.peak()


@pytest.mark.parametrize("name", CHIPS)
def test_what_is_granted_is_there(name):
    chip = CHIPS[name]
    assert chip.name == name
    assert 0 < chip.granted <= chip.fast_memory < chip.memory
    assert {"bfloat16", "float32"} <= set(chip.flops)
    with pytest.raises(dataclasses.FrozenInstanceError):
        chip.cores = 3  # pyright: ignore[reportAttributeAccessIssue]  # wrong on purpose


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "v4"), ("TPU v5 lite", "v5e"), ("TPU v5e", "v5e"), ("TPU v5", "v5p"), ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"), ("TPU v6e", "v6e"), ("TPU7x", "tpu7x"), ("TPU v4 lite", None), ("TPU v3", None),
        ("NVIDIA A100-SXM4-40GB", "a100"), ("NVIDIA A100-SXM4-80GB", "a100"), ("NVIDIA A100 80GB PCIe", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H100 PCIe", "h100"), ("NVIDIA GH200 480GB", "h100"),
        ("NVIDIA H200", "h200"), ("NVIDIA B200", "b200"), ("NVIDIA GB200", "b200"), ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", None), ("Tesla T4", None), ("cpu", None),
    ],
)  # fmt: skip
def test_device_kinds(kind, name):
    got = chips.of_kind(kind)
    assert (got and got.name) == name
    assert sum(chip.is_kind(kind) for chip in CHIPS.values()) == (name is not None)


def test_lookups_by_name():
    assert {chip.platform for chip in TPUS.values()} == {"tpu"}
    assert {chip.platform for chip in GPUS.values()} == {"gpu"}
    assert chips.tpu("v5e") is TPUS["v5e"]
    assert chips.tpu("h100") is None
    assert chips.tpu(None) is None
    assert chips.SMALLEST_TPU.name == "v4"


@pytest.mark.parametrize(
    ("name", "capability", "found"),
    [
        ("h200", (9, 0), "h200"), (None, (9, 0), "h100"), ("RTX", (8, 6), "l4"), (None, (8, 0), "a100"),
        (None, (10, 3), "b200"), (None, (12, 0), "b200"), (None, None, "h100"), ("v5e", None, "h100"),
    ],
)  # fmt: skip
def test_a_card_that_is_not_in_the_table_is_taken_for_its_nearest(name, capability, found):
    assert chips.nearest_gpu(name, capability).name == found


@pytest.mark.parametrize("name", TPUS)
def test_jax_has_the_same_figures(name):
    """But for rounding, and for v5p's bandwidth, of which Google's pages say more."""
    from jax.experimental.pallas import tpu as pltpu

    chip = TPUS[name]
    theirs = pltpu.get_tpu_info_for_chip(pltpu.ChipVersion(name.removeprefix("tpu")), chip.cores)
    assert (chip.matrix_units, chip.matrix_side) == (theirs.num_mxus, theirs.mxu_column_size)
    assert chip.fast_memory == theirs.vmem_capacity_bytes
    assert chip.memory == pytest.approx(chip.cores * theirs.hbm_capacity_bytes, rel=0.02)
    assert chip.peak() == pytest.approx(chip.cores * theirs.bf16_ops_per_second, rel=0.005)
    assert chip.bandwidth == pytest.approx(chip.cores * theirs.mem_bw_bytes_per_second, rel=0.13)


_COMPILE = """
import json
import jax, numpy as np
from jax.experimental import pallas as pl, topologies
from jax.experimental.pallas import tpu as pltpu
from jattn_kernels.chips import TPUS

def kernel(x, out):
    out[...] = x[:8]

def fits(chip, size):
    device = topologies.get_topology_desc(platform="tpu", topology_name=chip.topology).devices[0]
    mesh = jax.sharding.Mesh(np.array([device]), "x")
    rows = size // 2 // 512 - 8  # the two copies of a block fill all but two of the result
    call = pl.pallas_call(
        kernel, grid=(4,), out_shape=jax.ShapeDtypeStruct((32, 128), np.float32),
        in_specs=[pl.BlockSpec((rows, 128), lambda i: (i, 0))], out_specs=pl.BlockSpec((8, 128), lambda i: (i, 0)),
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=size),
    )
    placed = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    with jax.set_mesh(mesh):
        lowered = jax.jit(call).lower(jax.ShapeDtypeStruct((4 * rows, 128), np.float32, sharding=placed))
    try:
        lowered.compile()
    except jax.errors.JaxRuntimeError:
        return device.device_kind, False
    return device.device_kind, True

print(json.dumps({n: (fits(x, x.granted), fits(x, x.fast_memory + 2**20)) for n, x in TPUS.items()}))
"""


@aot.needed
def test_the_compiler_grants_what_the_table_says():
    done = subprocess.run([sys.executable, "-c", _COMPILE], env=aot.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout.splitlines()[-1])
    for name, ((kind, granted), (_, more)) in got.items():
        assert chips.of_kind(kind) is TPUS[name]
        assert granted
        assert not more
