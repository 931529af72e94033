"""Rotary position embedding."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float


def rotary(x: Float[Array, "*b t h d"], positions: Any = None, base: float = 10_000.0) -> Float[Array, "*b t h d"]:
    """Turns each pair of features by an angle proportional to its position (RoFormer, Su et al. 2021, eq. 34):

        (x[m], x[m + d/2])  ->  (x[m] cos a - x[m + d/2] sin a,  x[m] sin a + x[m + d/2] cos a)
        a = position * base^(-2m/d),    m = 0 .. d/2 - 1

    Norms are kept, and the product of a turned query and a turned key depends on the difference of their positions
    alone.  Features m and m + d/2 make a pair, as in Flax, GPT-NeoX and Llama; the paper pairs neighbours, which is the
    same up to the order of the features of the projections.

    Args:
      x: queries `[.., t, h, d]` or keys `[.., s, g, d]`, d even.
      positions: numbers broadcastable to `[.., t]`, 0, 1, 2, ... by default.
      base: the longest wavelength is 2 pi base^(1 - 2/d) positions.

    Returns:
      Of x's shape and dtype; angles are computed in float32 or wider.

    Raises:
      ValueError: d is odd, or the positions do not fit.

    >>> import jax.numpy as jnp, numpy as np, jattn
    >>> x = jnp.ones((3, 1, 2))  # three positions, one head, one pair of features
    >>> print(np.asarray(jattn.nn.rotary(x), np.float64)[:, 0].round(2))
    [[ 1.    1.  ]
     [-0.3   1.38]
     [-1.33  0.49]]
    """
    d, lead = x.shape[-1], x.shape[:-2]
    if d % 2:
        raise ValueError(f"rotary turns pairs of features: the width d must be even, got x {list(x.shape)}")
    wide = jnp.promote_types(x.dtype, jnp.float32)
    positions = jnp.arange(lead[-1]) if positions is None else jnp.asarray(positions)
    if not _fits(positions.shape, lead):
        raise ValueError(
            f"positions must be broadcastable to [.., t] = {list(lead)} and have its t, got {list(positions.shape)}"
        )
    frequency = base ** (-jnp.arange(0, d, 2, dtype=wide) / d)
    angle = positions.astype(wide)[..., None, None] * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = jnp.split(x.astype(wide), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1).astype(x.dtype)


def _fits(shape: tuple[int, ...], lead: tuple[int, ...]) -> bool:
    """Whether positions of that shape belong to rows of those leading axes."""
    if not 1 <= len(shape) <= len(lead) or shape[-1] != lead[-1]:
        return False
    return all(n in (1, want) for n, want in zip(shape[::-1], lead[::-1], strict=False))
