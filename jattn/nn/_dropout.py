"""Dropout of attention weights in layers: where its random bits come from."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from jattn import gates
from jattn.nn import _checks


def feeds(rngs: nnx.Rngs) -> bool:
    """Whether dropout can draw from one of the streams."""
    return "dropout" in rngs or "default" in rngs


def drawn(rate: float, own: nnx.RngStream | None, rngs: nnx.Rngs | nnx.RngStream | None) -> gates.Gate:
    """The gate of one call, with bits from `rngs`, or else from the layer's own stream.

    Raises:
      TypeError: `rngs` is no source of random keys.
      ValueError: neither is there.
    """
    _checks.check_call_rngs(rngs)
    source = own if rngs is None else rngs
    if source is None or (isinstance(source, nnx.Rngs) and not feeds(source)):
        raise ValueError(
            f"dropout = {rate} needs a stream of random keys: make the layer, or call it, with"
            " rngs=nnx.Rngs(dropout=0), or turn dropout off with eval() or deterministic=True"
        )
    random_key = source["dropout"]() if isinstance(source, nnx.Rngs) else source()
    return gates.dropout(rate, jax.random.bits(random_key, dtype=jnp.uint32))
