"""What the layers over recurrent networks share: reading with padding, and the steps as one vector."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jattn.nn._checks import AnyArray
from jattn.nn.pooling import AttentionPooling


def read(
    cell: nnx.GRUCell | nnx.OptimizedLSTMCell, x: jax.Array, mask: AnyArray | None, reverse: bool = False
) -> jax.Array:
    """The states `[.., s, hidden]` of an LSTM or GRU cell, from 0, at each step of x `[.., s, features]`.

    A step that is not real leaves the state as it was, so that neither padding nor holes change what comes after.
    """
    dtype = jnp.promote_types(x.dtype, cell.param_dtype) if cell.dtype is None else cell.dtype
    # Made of x, so that states begin where it lies, along Explicit axes and inside jax.shard_map: a scan keeps types.
    zeros = jnp.broadcast_to(jnp.zeros_like(x.sum((-2, -1))[..., None], dtype), (*x.shape[:-2], cell.hidden_features))
    start = (zeros, zeros) if isinstance(cell, nnx.OptimizedLSTMCell) else zeros
    steps = jnp.moveaxis(x, -2, 0)
    real = None if mask is None else jnp.moveaxis(jnp.asarray(mask), -1, 0)[..., None]

    def step(carry: Any, inputs: Any) -> tuple[Any, jax.Array]:
        x, real = inputs
        after, _ = cell(carry, x)
        if real is not None:
            after = jax.tree.map(lambda new, old: jnp.where(real, new, old), after, carry)
        return after, jax.tree.leaves(after)[-1]  # an LSTM's carry is (cell, hidden)

    return jnp.moveaxis(jax.lax.scan(step, start, (steps, real), reverse=reverse)[1], 0, -2)


class Summary(nnx.Module):
    """The steps of a sequence as one vector, sum_j weight_j x_j: the last real one, their mean, or attention."""

    kind: str
    attention: AttentionPooling | None

    def __init__(self, kind: str, known: tuple[str, ...], features: int, hidden: int | None, **options: Any):
        if kind not in known:
            raise ValueError(f"summary must be one of {', '.join(map(repr, known))}, got {kind!r}")
        self.kind = kind
        self.attention = nnx.data(AttentionPooling(features, hidden, **options) if kind == "attention" else None)

    def __call__(self, x: jax.Array, mask: AnyArray | None) -> jax.Array:
        if self.attention is not None:
            return self.attention(x, mask)
        return jnp.einsum("...s,...sf->...f", self.weights(x, mask), x).astype(x.dtype)

    def weights(self, x: jax.Array, mask: AnyArray | None) -> jax.Array:
        """`[.., s]`, float32 or wider, all 0 where no step is real."""
        if self.attention is not None:
            return self.attention.weights(x, mask)
        real = jnp.ones_like(x[..., 0], bool) & (True if mask is None else jnp.asarray(mask))  # lies where x does
        wide = jnp.promote_types(x.dtype, jnp.float32)  # 16 bits do not have every count
        count = real.sum(axis=-1, keepdims=True)
        if self.kind == "last":
            return (real & (real.cumsum(axis=-1) == count)).astype(wide)
        return real.astype(wide) / jnp.maximum(count, 1).astype(wide)
