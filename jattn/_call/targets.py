"""What a call is compiled for."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import jax
from jattn_kernels import chips

from jattn._call import layouts

if os.environ.get("JATTN_INTERPRET", "0") not in ("", "0"):
    # The simulator of GPUs has a thread for each warpgroup, which wait for one another: on fewer threads than XLA takes
    # on a machine of two cores they wait for ever.  XLA reads this when it first computes.
    os.environ.setdefault("NPROC", "16")

ANY = "any"  # the platform of a call whose backend was asked for: it runs wherever it is compiled for


class Target(NamedTuple):
    """A platform, which chip of it (its name in `jattn_kernels.chips`), and whether its kernels are interpreted instead
    (how, for Pallas)."""

    platform: str
    chip: str | None = None
    interpret: Any = False
    capability: tuple[int, int] | None = None
    """CUDA's compute capability, of NVIDIA's GPUs: what kernels for them go by, since more cards have one than the
    table of chips has lines."""
    layout: layouts.Layout | None = None
    """Where in a mesh calls lie, as far as `jattn.parallel.layout` says."""

    @property
    def tpu(self) -> bool:
        """Whether kernels for TPU run there, as they are or interpreted."""
        return self.platform == "tpu" or bool(self.interpret)

    @property
    def gpu(self) -> bool:
        """Whether kernels for GPU run there, as they are or simulated."""
        return self.platform == "gpu" or bool(self.interpret)


def current() -> Target:
    """The mesh of `jax.set_mesh` decides, else the default device.

    A mesh of compile-only devices is a way to compile for a chip that is not there.  Elsewhere than on TPU
    `JATTN_INTERPRET=1` in the environment asks to interpret the kernels: what they compute, slowly; a chip's name, such
    as `JATTN_INTERPRET=b200`, asks for those of that chip.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
    asked = os.environ.get("JATTN_INTERPRET", "0")
    interpret = device.platform != "tpu" and asked not in ("", "0")
    chip = (chips.CHIPS.get(asked) if interpret else None) or chips.of_kind(device.device_kind)
    return Target(device.platform, chip and chip.name, interpret, _capability(device, chip), layouts.current())


def named(device: str) -> Target:
    """The chip of that name, here or not."""
    if device not in chips.CHIPS:
        raise ValueError(f"device must be one of {', '.join(chips.CHIPS)}, got {device!r}")
    chip = chips.CHIPS[device]
    return Target(chip.platform, device, False, _capability(None, chip))


def _capability(device: Any, chip: chips.Chip | None) -> tuple[int, int] | None:
    """Of an NVIDIA GPU: as the chip's line says, else as the device does (AMD's say "gfx942")."""
    if isinstance(chip, chips.Gpu):
        return chip.capability
    major, _, minor = str(getattr(device, "compute_capability", "")).partition(".")
    return (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else None
