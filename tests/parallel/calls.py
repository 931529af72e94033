"""Calls over the two simulated devices that tests have: small enough to run in the process of the tests."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType

from jattn._call import targets
from jattn.parallel._sharded_call import MeshAxes, ShardedCall

Q, K, V = (np.random.default_rng(n).standard_normal((2, 8, 2, 4)).astype(np.float32) for n in range(3))


def mesh(*shape: int, names: tuple[str, ...] = ("sequence",), kind: AxisType = AxisType.Auto) -> jax.sharding.Mesh:
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(shape))


def call(
    strategy: Any, axes: MeshAxes, zigzag: bool = False, implementation: Any = None, lse: bool = True
) -> ShardedCall:
    """A call in blocks of 2."""
    return ShardedCall(axes, strategy, zigzag, implementation, (2, 2), lse, targets.current())
