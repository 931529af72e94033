"""Rotary position embedding."""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jattn._call import modes
from jattn.nn import _checks


@modes.ordinary
def rotary(
    x: Float[_checks.AnyArray, "*b t h d"], positions: ArrayLike | None = None, base: ArrayLike = 10_000.0
) -> Float[Array, "*b t h d"]:
    """Turns each pair of features by an angle proportional to its position (RoFormer, Su et al. 2021, eq. 34):

        (x[m], x[m + d/2])  ->  (x[m] cos a - x[m + d/2] sin a,  x[m] sin a + x[m + d/2] cos a)
        a = position * base^(-2m/d),    m = 0 .. d/2 - 1

    Norms are kept, and the product of a turned query and a turned key depends on the difference of their positions
    alone.  Features m and m + d/2 make a pair, as in Flax, GPT-NeoX and Llama; the paper pairs neighbours, which is the
    same up to the order of the features of the projections.

    Args:
      x: queries `[.., t, h, d]` or keys `[.., s, g, d]`, d even.
      positions: numbers broadcastable to `[.., t]`, 0, 1, 2, ... by default.
      base: a number or a scalar array > 0; the longest wavelength is 2 pi base^(1 - 2/d) positions.

    Returns:
      Of x's shape and dtype; angles are computed in float32 or wider.

    Raises:
      ValueError, TypeError: d is odd, the positions do not fit, or the base is no number > 0.

    >>> import jax.numpy as jnp, numpy as np, jattn
    >>> x = jnp.ones((3, 1, 2))  # three positions, one head, one pair of features
    >>> print(np.asarray(jattn.nn.rotary(x), np.float64)[:, 0].round(2))
    [[ 1.    1.  ]
     [-0.3   1.38]
     [-1.33  0.49]]

    Source: Su et al. 2021, equation 34.
    """
    _check(x, base)
    d, lead = x.shape[-1], x.shape[:-2]
    wide = jnp.promote_types(x.dtype, jnp.float32)
    positions = jnp.arange(lead[-1]) if positions is None else jnp.asarray(positions)
    if not _fits(positions.shape, lead):
        raise ValueError(
            f"positions must be broadcastable to [.., t] = {list(lead)} and have its t, got {list(positions.shape)}"
        )
    frequency = jnp.asarray(base, wide) ** (-jnp.arange(0, d, 2, dtype=wide) / d)
    angle = positions.astype(wide).reshape((1,) * (len(lead) - positions.ndim) + (*positions.shape, 1, 1))
    angle = angle * frequency.reshape((1,) * (angle.ndim - 1) + (-1,))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = jnp.split(jnp.asarray(x, wide), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1).astype(x.dtype)


def _check(x: _checks.AnyArray, base: ArrayLike) -> None:
    """Raises unless x has pairs of features and the base is one number."""
    if not hasattr(x, "shape") or x.ndim < 3 or not jnp.issubdtype(x.dtype, jnp.floating):
        got = f"{x.dtype}{list(x.shape)}" if hasattr(x, "shape") else type(x).__name__
        raise TypeError(f"rotary takes floating-point queries [.., t, h, d] or keys [.., s, g, d], got {got}")
    if x.shape[-1] % 2:
        raise ValueError(f"rotary turns pairs of features: the width d must be even, got x {list(x.shape)}")
    if _checks.is_array(base):
        if base.ndim or not jnp.issubdtype(base.dtype, jnp.number):
            raise ValueError(f"base must be one number > 0, got {base.dtype}{list(base.shape)}")
    else:
        _checks.check_base(base, "base")


def _fits(shape: tuple[int, ...], lead: tuple[int, ...]) -> bool:
    """Whether positions of that shape belong to rows of those leading axes."""
    if not 1 <= len(shape) <= len(lead) or shape[-1] != lead[-1]:
        return False
    return all(n in (1, want) for n, want in zip(shape[::-1], lead[::-1], strict=False))
