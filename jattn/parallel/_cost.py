"""What a strategy sends, holds and takes on each device: `explain` goes by it, and the predictions for whole pods."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from jattn_kernels.chips import Chip, Tpu


class Load(NamedTuple):
    """What one of the devices along a sequence has of a call, in bytes."""

    devices: int
    query: int
    keys: int
    """Bytes of the keys and the values together."""
    out: int
    itemsize: int
    """Bytes of one number in these arrays."""

    @property
    def wide(self) -> float:
        """How many times as many bytes a sum in float32 or wider has."""
        return max(4, self.itemsize) / self.itemsize


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a pass costs the busiest device: bytes, and milliseconds, which are None where they are not known."""

    sent: int
    memory: int
    compute: float | None
    network: float | None
    hidden: float | None
    """The share of the network's time during which the device computes."""

    @property
    def total(self) -> float | None:
        if self.compute is None or self.network is None or self.hidden is None:
            return None
        return self.compute + self.network * (1 - self.hidden)

    def then(self, other: Cost) -> Cost:
        """The cost of this pass and of another after it."""
        plus = lambda x, y: None if x is None or y is None else x + y
        network, behind = plus(self.network, other.network), plus(self._behind, other._behind)
        return Cost(
            self.sent + other.sent,
            max(self.memory, other.memory),
            plus(self.compute, other.compute),
            network,
            None if behind is None else behind / network if network else 1.0,
        )

    @property
    def _behind(self) -> float | None:
        """Milliseconds of the network that are hidden."""
        return None if self.network is None or self.hidden is None else self.network * self.hidden


def cost(strategy: str, load: Load, times: np.ndarray | None, chip: Chip | None, *, backward: bool = False) -> Cost:
    """What a strategy costs in the forward pass, or in the backward one.

    A ring takes as long in each step as the busiest device computes, or as long as keys take to the next one where that
    is longer.  Over all of its steps it reads and writes its sums and brings queries and keys in the kernels' layout,
    which takes the time of their bytes.  Nothing else is hidden.

    Args:
      strategy: "ring", "all_to_all" or "gather".
      load: what a device has.
      times: milliseconds that kernels take for each device's queries with each device's keys, `[devices, devices]`;
        None where they are not known.
      chip: on which they run, None if it is not known.
      backward: which of the passes.
    """
    steps = _steps(strategy, load, backward)
    sent, memory = int(sum(steps)), _memory(strategy, load)
    if times is None or chip is None or (chip.link is None and load.devices > 1):
        return Cost(sent, memory, None, None, None)
    n = load.devices
    if n == 1:
        return Cost(sent, memory, float(times.sum()), 0.0, 1.0)
    assert chip.link is not None
    network = 1e3 * np.array(steps) / chip.link
    if strategy == "all_to_all":
        return Cost(sent, memory, float(times.sum() / n), float(network.sum() * _crowding(chip, n)), 0.0)
    if strategy == "gather":
        return Cost(sent, memory, float(times.sum(1).max()), float(network.sum()), 0.0)
    every = np.arange(n)
    kernels = np.array([times[every, (every - i) % n].max() for i in range(n)])
    busy = kernels + 1e3 * _moved(load, backward) / chip.bandwidth
    hidden = np.minimum(busy, network[:n]).sum()  # what goes home at the end is waited for
    return Cost(sent, memory, float(busy.sum()), float(network.sum()), float(hidden / network.sum()))


def _steps(strategy: str, load: Load, backward: bool) -> list[float]:
    """Bytes that a device sends in each step."""
    n = load.devices
    if n == 1:
        return [0]
    if strategy == "all_to_all":  # gradients are sent there and back as the arrays are
        return [(load.query + load.keys + load.out) * (n - 1) // n]
    if strategy == "gather":
        return [(n - 1) * load.keys]
    if not backward:
        return [load.keys] * n
    # Sums of gradients go with the keys from the second step on, and home in the end.
    return [load.keys, *[load.keys * (1 + load.wide)] * (n - 1), load.keys]


def _memory(strategy: str, load: Load) -> int:
    """Bytes of inputs, outputs and what is held beside them."""
    own = load.query + load.keys + load.out
    return own + int(
        {"ring": 2 * load.keys + load.out * load.wide, "all_to_all": own, "gather": load.devices * load.keys}[strategy]
    )


def _moved(load: Load, backward: bool) -> float:
    """Bytes of main memory that a ring's step reads and writes outside of its kernels: counted in programs for TPUs.

    Forward: the sum of out is read, added to and written; queries, keys and values are brought in the kernels' layout,
    and keys and values are copied to be sent.  Backward: the same of dq; of dout too the layout, and its product with
    out; sums of dk and dv are widened, received, added and written.
    """
    if not backward:
        return load.out * 3 * load.wide + 2 * load.query + 4 * load.keys
    return load.query * (2 * load.wide + 3) + 4 * load.out + load.keys * (4 * load.wide + 3)


def _crowding(chip: Chip, devices: int) -> float:
    """How many times as much as a device sends to all others goes over a link: half of a torus exchanges with the other
    half over the links between the two alone."""
    if not isinstance(chip, Tpu):
        return 1.0
    side = devices ** (1 / chip.torus)
    return max(1.0, side / (8 if side >= chip.closed else 4))
