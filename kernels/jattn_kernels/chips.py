"""The chips that kernels are made for: how JAX names them, what they have, and what they can do at most.

One table for all who ask: which chip a device is, tile sizes, plans and their estimates, the benchmarks, the tests.
All figures are of one JAX device, which is half a chip where JAX shows a chip's two cores as two devices (tpu7x).
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping
from typing import ClassVar

KIB, MIB, GIB = 2**10, 2**20, 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One JAX device of a generation.

    Attributes:
        name: As in `explain(device=...)`, in the tables of tile sizes and on the command lines of the benchmarks.
        kinds: What JAX's `device.device_kind` may say, with `*` for any text.
        cores: The TensorCores or streaming multiprocessors behind one device.
        clock: Cycles a second at which the published peaks are reached.
        memory: Bytes of main memory.
        bandwidth: Bytes a second between main memory and all cores.
        matrix_units: Matrix units of one core.
        matrix_side: The side of the square of one operand that a matrix unit multiplies with at once.
        flops: By the type of the operands, the floating-point operations a cycle of one core's matrix units; a
            multiply-add is two.  Types have JAX's names, and `tf32` is float32 of which 19 bits are multiplied.
        fast_memory: Bytes of the on-chip memory that a kernel addresses itself, of one core, as the hardware has them.
        granted: Bytes of it that a kernel gets when it asks for as much as our kernels do.
        link: Bytes a second that one device can send to its neighbour: a TPU over one link of the torus, a GPU over all
            of its NVLink; None where there is no such link.
        devices: How many JAX devices a chip is shown as.
        linked: How many chips such links join where a network joins hosts, of which nothing is known here; None where
            links reach over all hosts.
    """

    platform: ClassVar[str]
    """What JAX's `device.platform` says."""

    name: str
    kinds: tuple[str, ...]
    cores: int
    clock: float
    memory: int
    bandwidth: float
    matrix_units: int
    matrix_side: int
    flops: Mapping[str, float] = dataclasses.field(hash=False)
    fast_memory: int
    granted: int
    link: float | None
    devices: int = 1
    linked: int | None = None

    def is_kind(self, kind: str) -> bool:
        """Whether a device of this kind is such a chip."""
        return any(fnmatch.fnmatchcase(kind, x) for x in self.kinds)

    def peak(self, dtype: str = "bfloat16", width: int | None = None) -> float:
        """The most floating-point operations a second of products whose operands have that type.

        A matrix unit multiplies whole squares: of operands `width` wide, what they leave of a square is idle.
        """
        share = 1.0 if width is None else width / (-(-width // self.matrix_side) * self.matrix_side)
        return self.flops[dtype] * self.clock * self.cores * share


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tpu(Chip):
    """A TPU.  Its fast memory is VMEM.

    Attributes:
        topology: One host of it, as `jax.experimental.topologies.get_topology_desc` names them: what to compile for
            where there is none.
        torus: How many axes the torus has in which chips stand.
        closed: The fewest chips along an axis of it that are a closed ring.
    """

    platform = "tpu"

    topology: str
    torus: int
    closed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpu(Chip):
    """An NVIDIA GPU.  Its fast memory is a multiprocessor's shared memory.

    Attributes:
        capability: CUDA's compute capability: (9, 0) of sm_90.
        card: The `device_kind` of the card that the figures are of.
        l2_cache: Bytes of the cache between main memory and all multiprocessors.
        threads: How many threads a multiprocessor holds.
    """

    platform = "gpu"
    registers: ClassVar[int] = 65536
    """How many registers of 32 bits a multiprocessor has, for all of its threads."""

    capability: tuple[int, int]
    card: str
    l2_cache: int
    threads: int = 2048

    @property
    def reserved(self) -> int:
        """Bytes of shared memory that the driver keeps for each block."""
        return self.fast_memory - self.granted


# TPUs.  Peaks, memory and bandwidth: Google Cloud's pages of each version, per chip; units and VMEM: JAX's
# `jax.experimental.pallas.tpu.get_tpu_info`.
#
# On v6e and tpu7x a peak takes two rows a cycle of each unit: 918e12 = 2 flops * 2 units * 256^2 * 2 rows * 1.75e9.
# The clock of tpu7x is not published: it is what its peak, 2307e12 a chip, needs of such units.
#
# float32 has no unit of its own: at `Precision.HIGHEST` it is six products of bfloat16.
#
# VMEM, as libtpu 0.0.52 was found to give it: a kernel that asks for nothing gets 16 MiB (32 on v6e and tpu7x); one
# that sets `vmem_limit_bytes` gets what it asks for, up to all there is but 64 KiB.  `granted` is what our kernels ask
# for: less than all where there is much, since XLA keeps small arrays there around a kernel.  So both 100 and 128 MiB
# are right for v5e.
#
# Links, one way: Austin et al. 2025, "How to Scale Your Model", chapter 2, which has the axes too; of 7x Google Cloud's
# page, 1200e9 a chip of six links both ways.  A link is that of a chip, whose two devices are neighbours on tpu7x.


def _tpu_flops(bfloat16: float, **others: float) -> dict[str, float]:
    return {"bfloat16": bfloat16, "float32": bfloat16 / 6, **others}


_FOUR_OF_128 = 2 * 4 * 128**2
_TWO_OF_256 = 2 * 2 * 256**2 * 2
TPUS = {
    chip.name: chip
    for chip in (
        Tpu(
            name="v4", kinds=("TPU v4",), topology="v4:2x2x1", cores=2, clock=1.05e9, memory=32 * GIB, bandwidth=1228e9,
            matrix_units=4, matrix_side=128, flops=_tpu_flops(_FOUR_OF_128), fast_memory=16 * MIB, granted=16 * MIB,
            link=4.5e10, torus=3, closed=4,
        ),
        Tpu(
            name="v5e", kinds=("TPU v5 lite", "TPU v5e"), topology="v5e:2x2", cores=1, clock=1.5e9, memory=16 * GIB,
            bandwidth=819e9, matrix_units=4, matrix_side=128, flops=_tpu_flops(_FOUR_OF_128, int8=2 * _FOUR_OF_128),
            fast_memory=128 * MIB, granted=100 * MIB,
            link=4.5e10, torus=2, closed=16,
        ),
        Tpu(
            name="v5p", kinds=("TPU v5", "TPU v5p"), topology="v5p:2x2x1", cores=2, clock=1.75e9, memory=95 * GIB,
            bandwidth=2764e9, matrix_units=4, matrix_side=128, flops=_tpu_flops(_FOUR_OF_128, int8=2 * _FOUR_OF_128),
            fast_memory=64 * MIB, granted=60 * MIB,
            link=9e10, torus=3, closed=4,
        ),
        Tpu(
            name="v6e", kinds=("TPU v6 lite", "TPU v6e"), topology="v6e:2x2", cores=1, clock=1.75e9, memory=32 * GIB,
            bandwidth=1640e9, matrix_units=2, matrix_side=256, flops=_tpu_flops(_TWO_OF_256, int8=2 * _TWO_OF_256),
            fast_memory=128 * MIB, granted=100 * MIB,
            link=9e10, torus=2, closed=16,
        ),
        Tpu(
            name="tpu7x", kinds=("TPU7x",), topology="tpu7x:2x2x1", cores=1, clock=2.2e9, memory=96 * GIB,
            bandwidth=3690e9, matrix_units=2, matrix_side=256,
            flops=_tpu_flops(_TWO_OF_256, float8_e4m3fn=2 * _TWO_OF_256), fast_memory=64 * MIB, granted=56 * MIB,
            link=1e11, torus=3, closed=4, devices=2,
        ),
    )
}  # fmt: skip
SMALLEST_TPU = min(TPUS.values(), key=lambda chip: chip.granted)
"""Plans for it fit every TPU: those of the interpreter, and of TPUs that are not in the table."""


# GPUs.  Multiprocessors, memory, L2 cache, bandwidth and peaks without sparsity: NVIDIA's data sheets of one card (A100
# 80 GB SXM, H100 SXM, H200 SXM, HGX B200, L4).  Cards of the same chip with other memory or clocks get its record: the
# kernels and their tile sizes are the same.
#
# Flops a cycle and multiprocessor: NVIDIA's white papers of each architecture.  float32 is that of the ordinary units.
#
# Shared memory, threads and registers: CUDA's programming guide, "technical specifications per compute capability".  A
# block gets all of a multiprocessor's shared memory but 1 KiB that the driver keeps, when its kernel sets
# `cudaFuncAttributeMaxDynamicSharedMemorySize` (as Pallas does), and 48 KiB when it does not.
#
# Links, one way: half of what the data sheets say of NVLink, which joins the cards of an HGX board.


def _gpu_flops(bfloat16: float, float32: float, **others: float) -> dict[str, float]:
    """tf32 takes twice as long as bfloat16, bytes half as long."""
    dense = {"bfloat16": bfloat16, "float16": bfloat16, "tf32": bfloat16 / 2, "int8": 2 * bfloat16}
    return {**dense, "float32": float32, **others}


_HOPPER_FLOPS = _gpu_flops(4096, 256, float8_e4m3fn=8192)
GPUS = {
    chip.name: chip
    for chip in (
        Gpu(
            name="a100", kinds=("NVIDIA A100-*", "NVIDIA A100 *"), capability=(8, 0), cores=108, clock=1.41e9,
            memory=80 * GIB, bandwidth=2039e9, matrix_units=4, matrix_side=16, flops=_gpu_flops(2048, 128),
            fast_memory=164 * KIB, granted=163 * KIB, link=3e11, linked=8,
            card="NVIDIA A100-SXM4-80GB", l2_cache=40 * MIB,
        ),
        Gpu(
            name="l4", kinds=("NVIDIA L4",), capability=(8, 9), cores=58, clock=2.04e9, memory=24 * GIB,
            bandwidth=300e9, matrix_units=4, matrix_side=16, flops=_gpu_flops(1024, 256, float8_e4m3fn=2048),
            fast_memory=100 * KIB, granted=99 * KIB, link=None, linked=1,
            card="NVIDIA L4", l2_cache=48 * MIB, threads=1536,
        ),
        Gpu(
            name="h100", kinds=("NVIDIA H100 *", "NVIDIA GH200 *"), capability=(9, 0), cores=132, clock=1.83e9,
            memory=80 * GIB, bandwidth=3352e9, matrix_units=4, matrix_side=16, flops=_HOPPER_FLOPS,
            fast_memory=228 * KIB, granted=227 * KIB, link=4.5e11, linked=8,
            card="NVIDIA H100 80GB HBM3", l2_cache=50 * MIB,
        ),
        Gpu(
            name="h200", kinds=("NVIDIA H200", "NVIDIA H200 *"), capability=(9, 0), cores=132, clock=1.83e9,
            memory=141 * GIB, bandwidth=4800e9, matrix_units=4, matrix_side=16, flops=_HOPPER_FLOPS,
            fast_memory=228 * KIB, granted=227 * KIB, link=4.5e11, linked=8,
            card="NVIDIA H200", l2_cache=50 * MIB,
        ),
        Gpu(
            name="b200", kinds=("NVIDIA B200", "NVIDIA B200 *", "NVIDIA GB200", "NVIDIA GB200 *"), capability=(10, 0),
            cores=148, clock=1.855e9, memory=180 * GIB, bandwidth=7700e9, matrix_units=4, matrix_side=16,
            flops=_gpu_flops(8192, 256, float8_e4m3fn=16384), fast_memory=228 * KIB, granted=227 * KIB, link=9e11,
            linked=8, card="NVIDIA B200", l2_cache=126 * MIB,
        ),
    )
}  # fmt: skip

CHIPS: dict[str, Chip] = {**TPUS, **GPUS}
"""All of them, by name."""


def of_kind(kind: str) -> Chip | None:
    """The chip that JAX calls by this `device_kind`, None if it is not in the table."""
    return next((chip for chip in CHIPS.values() if chip.is_kind(kind)), None)


def tpu(name: str | None) -> Tpu | None:
    """The TPU of that name, None if there is none."""
    return TPUS.get(name or "")


def nearest_gpu(name: str | None, capability: tuple[int, int] | None) -> Gpu:
    """The GPU of that name; else that of the nearest compute capability, whose machine code is the most alike; h100,
    whose kernels the simulator runs, where neither is known."""
    if name in GPUS:
        return GPUS[name]
    major, minor = capability or GPUS["h100"].capability
    far = lambda chip: (abs(chip.capability[0] - major), abs(chip.capability[1] - minor))
    return min(GPUS.values(), key=far)
