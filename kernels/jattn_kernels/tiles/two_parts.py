"""Numbers held as two float32, of which the second is what rounding took from the first."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

_HALF = 12  # bits of a float32's 24: a product of two halves is exact, and so does not mind how it is compiled


def _halves(x: float) -> tuple[float, float, float]:
    """The leading half of a number's bits, the half that follows, and what is left."""

    def leading(x: float) -> float:
        mantissa, exponent = np.frexp(x)
        return float(np.ldexp(np.trunc(np.ldexp(mantissa, _HALF)), exponent - _HALF))

    first = leading(x)
    second = leading(x - first)
    return first, second, x - first - second


def times(x: jax.Array, rest: jax.Array, factor: float) -> tuple[jax.Array, jax.Array]:
    """(x + rest) * factor, right to some 46 bits: the float32 next to it, and what is left.

    So lse goes from one unit to another and back without loss.  Of what is not finite nothing is left.
    """
    first, second, third = _halves(factor)
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) & jnp.uint32(0xFFFFFFFF << _HALF & 0xFFFFFFFF)
    high = jax.lax.bitcast_convert_type(bits, jnp.float32)
    low = x - high
    whole, left = high * first, low * second + x * third + rest * factor
    for part in (low * first, high * second):
        total = whole + part
        whole, left = total, left + ((whole - total) + part)
    total = whole + left
    finite = jnp.isfinite(total)
    return jnp.where(finite, total, x * factor), jnp.where(finite, (whole - total) + left, 0)
