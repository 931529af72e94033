"""Arrays whose batch axis is shorter than their call's: element b of the call uses entry b % length."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jattn._terms import Size


def spread(x: jax.Array, b: Size) -> jax.Array:
    """The array with an entry for each of b batch elements."""
    if x.shape[0] == 1:
        return jnp.broadcast_to(x, (b, *x.shape[1:]))
    return x if x.shape[0] == b else jnp.tile(x, (b // x.shape[0], *[1] * (x.ndim - 1)))


def folded(x: jax.Array, like: jax.Array) -> jax.Array:
    """The gradient of an array, summed over the batch elements that use the same entry, in the array's dtype."""
    if x.shape[0] != like.shape[0]:
        x = x.astype(jnp.float32).reshape(-1, *like.shape).sum(0)
    return x.astype(like.dtype)
