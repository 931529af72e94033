"""Which chunks of a sequence a device has: one in order, or, in zig-zag order, the r-th from either end."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Shares(NamedTuple):
    """How a sequence lies over devices: in one chunk each, or in zig-zag order in two."""

    devices: int
    zigzag: bool

    @property
    def each(self) -> int:
        """How many chunks a device has."""
        return 1 + self.zigzag

    @property
    def count(self) -> int:
        """How many chunks the sequence has."""
        return self.devices * self.each

    def chunk(self, device: Any, n: int) -> Any:
        """The number of a device's n-th chunk."""
        if not self.zigzag:
            return device
        return device + n * (2 * self.devices - 1 - 2 * device)

    def slices(self, length: int) -> list[slice]:
        """A device's chunks in its own `length` positions."""
        size = length // self.each
        return [slice(n * size, (n + 1) * size) for n in range(self.each)]

    def order(self) -> list[int]:
        """The chunks in the order in which the devices have them."""
        return [self.chunk(device, n) for device in range(self.devices) for n in range(self.each)]


def zigzag(x: jax.Array, devices: int, axis: int = 1) -> jax.Array:
    """An array with a sequence in zig-zag order: of 2n chunks device r of n has the r-th and the r-th from the end.

    Under a causal mask all devices then have as much to attend to, where in contiguous order the last has n times as
    much as the first.  What goes with positions is to be put in that order too: tokens, rotary angles, segment ids, a
    bias.

    Args:
      x: any array.
      devices: n, along the sequence axis.
      axis: of the sequence, whose length 2n divides.

    Returns:
      The same numbers in the other order; `unzigzag` puts them back.

    Raises:
      ValueError: 2n does not divide the length.

    >>> import jax.numpy as jnp, jattn
    >>> jattn.parallel.zigzag(jnp.arange(8), 2, axis=0).tolist()
    [0, 1, 6, 7, 2, 3, 4, 5]

    Source: Zhu 2024, "ring-flash-attention" (code); that devices need as much to do: Brandon et al. 2023, "Striped
    Attention".
    """
    return _chunks(x, Shares(devices, True).order(), axis)


def unzigzag(x: jax.Array, devices: int, axis: int = 1) -> jax.Array:
    """An array with a sequence in contiguous order again: the inverse of `zigzag`.

    Args:
      x: any array.
      devices: n, along the sequence axis.
      axis: of the sequence, whose length 2n divides.

    Raises:
      ValueError: 2n does not divide the length.

    >>> import jax.numpy as jnp, jattn
    >>> jattn.parallel.unzigzag(jattn.parallel.zigzag(jnp.arange(8), 2, axis=0), 2, axis=0).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    order = Shares(devices, True).order()
    return _chunks(x, [order.index(n) for n in range(len(order))], axis)


def _chunks(x: jax.Array, order: list[int], axis: int) -> jax.Array:
    x = jnp.asarray(x)
    if x.shape[axis] % len(order):
        raise ValueError(
            f"zig-zag order over {len(order) // 2} devices needs a length that {len(order)} divides, got axis {axis} of"
            f" shape {list(x.shape)}"
        )
    axis %= x.ndim
    apart = x.reshape(*x.shape[:axis], len(order), -1, *x.shape[axis + 1 :])
    return jnp.take(apart, np.array(order), axis).reshape(x.shape)
