"""The chips that the compiler can be asked for without one, and what its estimates need to know of each."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """One JAX device of a generation.

    Attributes:
        name: as in tables and on the command line.
        topology: what `jax.experimental.topologies` calls one host of it.
        cores: tensor cores behind one device. Where there are two (a megacore), a kernel's parallel axes are split.
        hertz: cycles a second.
        bandwidth: bytes a second between main memory and one core.
        multiply_adds: bfloat16 multiply-adds a cycle on all matrix units of one core.
        feed: cycles for which one bfloat16 `vmatmul` keeps a matrix unit busy; float32 operands take half of it.
        delay_slots: bundles that are still issued after a taken branch.
        granule: bytes in a unit of a DMA's size.
        flags: the compiler's, to keep whole operands out of on-chip memory. Otherwise XLA moves the operands of a
            small problem there before the kernel starts, which those of a large one would not fit.
    """

    name: str
    topology: str
    cores: int
    hertz: float
    bandwidth: float
    multiply_adds: int
    feed: int
    flags: str
    delay_slots: int = 4
    granule: int = 32

    @property
    def peak(self) -> float:
        """bfloat16 flops a second of the device."""
        return 2.0 * self.multiply_adds * self.hertz * self.cores


_V5 = "--xla_vf_vmem_memory_space_assignment=false"
_V6 = "--xla_gf_vmem_memory_space_assignment=false"
_128 = 4 * 128 * 128  # four units of 128 x 128, one row a cycle
_256 = 2 * 256 * 256 * 2  # two units of 256 x 256, two rows a cycle: a product 128 wide uses half of it
CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            "v4",
            "v4:2x2x1",
            cores=2,
            hertz=1.05e9,
            bandwidth=614e9,
            multiply_adds=_128,
            feed=16,
            flags="--xla_tpu_cmem_memory_space_assignment=false",
            delay_slots=1,
            granule=512,
        ),
        Chip("v5e", "v5e:2x2", cores=1, hertz=1.5e9, bandwidth=819e9, multiply_adds=_128, feed=16, flags=_V5),
        Chip("v5p", "v5p:2x2x1", cores=2, hertz=1.75e9, bandwidth=1382e9, multiply_adds=_128, feed=16, flags=_V5),
        Chip("v6e", "v6e:2x2", cores=1, hertz=1.75e9, bandwidth=1640e9, multiply_adds=_256, feed=8, flags=_V6),
        Chip(
            "tpu7x",
            "tpu7x:2x2x1",
            cores=1,
            hertz=1.75e9,
            bandwidth=3690e9,
            multiply_adds=_256,
            feed=8,
            flags=_V6,
            delay_slots=6,
        ),
    )
}
