"""What a caller may set of the cuDNN backend: what it is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax

from jattn.backends.blockwise import BLOCKWISE
from jattn.backends.contract import Fused
from jattn.backends.cudnn import binding


@dataclasses.dataclass(frozen=True)
class Settings:
    """The defaults are what `attention` takes by itself; another forward and backward stand in where cuDNN is not."""

    forward: Callable[..., tuple[jax.Array, jax.Array]] = binding.forward
    """It is called as `binding.forward` is."""
    backward: Callable[..., tuple[jax.Array, jax.Array, jax.Array]] = binding.backward
    """It is called as `binding.backward` is."""
    of_lse: Fused = BLOCKWISE
    """Whose gradients a call has where lse has one."""
