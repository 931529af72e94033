"""What a call is compiled for."""

from __future__ import annotations

import os
from typing import NamedTuple

import jax

CHIPS = {  # device kinds, as jax names them
    "TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p", "TPU v6 lite": "v6e",
    "TPU v6e": "v6e", "TPU7x": "tpu7x",
}  # fmt: skip


class Target(NamedTuple):
    """A platform, which chip of it (TPU only), and whether its kernels are to be interpreted instead."""

    platform: str
    chip: str | None = None
    interpret: bool = False

    @property
    def tpu(self) -> bool:
        return self.platform == "tpu" or self.interpret


def current() -> Target:
    """The mesh of `jax.set_mesh` decides, else the default device; `JATTN_INTERPRET=1` asks to interpret kernels.

    A mesh of compile-only devices is a way to compile for a chip that is not there.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
    platform, kind = device.platform, device.device_kind
    interpret = platform != "tpu" and os.environ.get("JATTN_INTERPRET", "0") not in ("", "0")
    return Target(platform, CHIPS.get(kind), interpret)
