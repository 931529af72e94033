"""What plans and kernels need to know of each TPU."""

from __future__ import annotations

from typing import NamedTuple

MIB = 2**20


class Chip(NamedTuple):
    """One JAX device."""

    memory: int  # bytes of fast memory that a kernel may use: what the compiler grants, less what it keeps for itself
    bandwidth: float  # bytes a second between main memory and all cores


CHIPS = {
    "v4": Chip(16 * MIB, 1228e9),
    "v5e": Chip(100 * MIB, 819e9),
    "v5p": Chip(60 * MIB, 2764e9),
    "v6e": Chip(100 * MIB, 1640e9),
    "tpu7x": Chip(56 * MIB, 3690e9),
}
SMALLEST = min(CHIPS.values(), key=lambda chip: chip.memory)


def chip_of(name: str | None) -> Chip | None:
    """None for a chip that is not in the table."""
    return CHIPS.get(name or "")
