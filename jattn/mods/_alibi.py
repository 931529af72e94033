"""A penalty that grows with the distance."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike

from jattn._terms import FieldValue, is_whole, operand, term
from jattn.mods._mod import Mod


@term
class Alibi(Mod):
    """score - slope * abs(i - j)."""

    finite = affine = True

    slopes: FieldValue

    def __call__(self, score: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
        return score - self.slopes * jnp.abs(i - j)


def alibi(slopes: ArrayLike) -> Mod:
    """score - slopes[h] * abs(i - j): attention with linear biases.

    Args:
      slopes: numbers `[h]`, which get gradients; `alibi_slopes(h)` gives the paper's.

    Raises:
      ValueError: `slopes` has other axes.  When `attention` is called: it is not as long as the query has heads.
      TypeError: it is not an array.

    >>> import jax.numpy as jnp, jattn
    >>> q = jnp.ones((1, 3, 2, 4))
    >>> jattn.attention(q, q, q, mods=jattn.mods.alibi(jattn.mods.alibi_slopes(2))).shape
    (1, 3, 2, 4)

    Source: Press et al. 2022, section 3.
    """
    named = operand(slopes, "h")
    if named.array.ndim != 1:
        raise ValueError(f"slopes must be [h], got shape {named.array.shape}; mods.bias takes a number for each pair")
    return Alibi(named)


def alibi_slopes(heads: int) -> jax.Array:
    """ALiBi's slopes `[heads]`: 2^(-8/n), 2^(-16/n), .., with n the power of two at or below `heads`, and for the heads
    beyond n every second one of the slopes of 2n.

    Args:
      heads: how many, an int >= 1.

    Raises:
      ValueError, TypeError: `heads` is less, or no int.

    >>> import jattn
    >>> jattn.mods.alibi_slopes(4).tolist()
    [0.25, 0.0625, 0.015625, 0.00390625]

    Source: Press et al. 2022, section 3, and its code for other numbers of heads.
    """
    if not is_whole(heads):
        raise TypeError(f"heads must be an int >= 1, got {heads!r}")
    if heads < 1:
        raise ValueError(f"heads must be >= 1, got {heads}")
    n = 2 ** math.floor(math.log2(heads))
    first = [2.0 ** (-8.0 * (x + 1) / n) for x in range(n)]
    between = [2.0 ** (-4.0 * (2 * x + 1) / n) for x in range(heads - n)]
    return jnp.asarray(first + between)
