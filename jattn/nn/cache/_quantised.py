"""Keys and values of few bits: each row of a head is rounded to int8 or float8 of its greatest number.

    scale = max over d of abs(x) / most,  stored = round(x / scale)           most: 127, or the dtype's greatest number

With int8 what is read differs from x by scale / 2 at most, 1/254 of the row's greatest number; with float8_e4m3fn each
number by 1/16 of its own, or scale * 2^-10 where that is more.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from jattn._call.scales import NARROW


def is_narrow(dtype: DTypeLike) -> bool:
    """Whether numbers of this dtype are kept with scales."""
    return jnp.dtype(dtype) in NARROW


def quantised(x: Float[Array, "*n d"], dtype: DTypeLike) -> tuple[Num[Array, "*n d"], Float[Array, "*n"]]:
    """Numbers of few bits and their scales, float32: number * scale is about x.  A row of zeros has scale 1, and one
    with NaN has NaN."""
    dtype = jnp.dtype(dtype)
    whole = jnp.issubdtype(dtype, jnp.integer)
    most = float(jnp.iinfo(dtype).max if whole else jnp.finfo(dtype).max)
    wide = x.astype(jnp.float32)
    greatest = jnp.max(jnp.abs(wide), axis=-1, initial=0.0)
    scale = jnp.where(greatest == 0, 1.0, greatest / most)
    ratio = wide / scale[..., None]
    number = jnp.clip(jnp.round(ratio) if whole else ratio, -most, most)
    return jnp.where(jnp.isnan(number), 0, number).astype(dtype), scale
