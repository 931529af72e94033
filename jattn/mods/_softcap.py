"""Scores kept within bounds."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike

from jattn._terms import FieldValue, Operand, number, term
from jattn.mods._mod import Mod


@term
class SoftCap(Mod):
    """cap * tanh(score / cap)."""

    finite = True

    cap: FieldValue

    def __call__(self, score: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
        del i, j
        return self.cap * jnp.tanh(score * (1 / self.cap))  # one division, and not one for each pair


_MOST = 1e30
"""The greatest cap: of scores divided by greater ones nothing is left in float32."""


def softcap(cap: ArrayLike) -> Mod:
    """cap * tanh(score / cap): keeps scores within (-cap, cap).

    A score that is -inf before it, by a bias say, is hidden and stays so.  On GPU fused kernels take the hardware's
    tanh, whose relative error is 2^-11.

    Args:
      cap: a number > 0, which is part of the compiled program, so that another one compiles anew; or a scalar array,
        which is not, and gets a gradient.

    Raises:
      ValueError: `cap` is a number <= 0 or above 1e30, or an array with axes.
      TypeError: it is neither a number nor an array.

    >>> import jax.numpy as jnp, jattn
    >>> float(jattn.mods.softcap(30.0)(jnp.float32(3000.0), jnp.int32(0), jnp.int32(0)))
    30.0

    Source: Gemma Team 2024, "Gemma 2", section 2 (logit soft-capping).
    """
    bound = number(cap, "cap")
    if not isinstance(bound, Operand) and not 0 < bound <= _MOST:
        raise ValueError(f"cap must be > 0 and at most {_MOST:g}, got {bound}: without a cap leave the mod out")
    return SoftCap(bound)
