"""A call as cuDNN takes it: what is done around both passes.

Tiles are multiplied whole, and 0 * NaN is NaN: so what nobody sees is 0 to cuDNN, whatever stands in it.  What it gives
for rows that see nothing, and for gradients of keys past a length, is not relied upon.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jattn.backends.batches import spread
from jattn.backends.contract import Spec
from jattn.backends.cudnn import binding
from jattn.backends.cudnn.masked import Seen, seen


class Call:
    """One call: what its mask shows, and its arrays as cuDNN takes them."""

    seen: Seen
    kind: binding.CudnnOptions
    b: int

    def __init__(self, spec: Spec, q: jax.Array, k: jax.Array, v: jax.Array, operands: Sequence[Any]):
        terms = spec.terms(operands)
        lengths = [x.shape[0] for x in (q, k, v)]
        lengths += [x.shape[0] for x, axes in zip(operands, spec.signature.axes, strict=True) if "b" in axes]
        self.b = max(lengths)
        self.seen = seen(terms.mask, self.b, q.shape[1], k.shape[1])
        padded = self.seen.lengths is not None
        self.kind = binding.CudnnOptions(terms.compare.scale, self.seen.causal, self.seen.window, padded)

    def rows(self, x: jax.Array, hidden: float = 0) -> jax.Array:
        """`[b, t, h, ..]` for every batch element, `hidden` in rows that see nothing."""
        return self._shown(x, self.seen.rows, hidden)

    def keys(self, x: jax.Array) -> jax.Array:
        """`[b, end, g, ..]`: the keys that some query may see, 0 in those that none does."""
        return self._shown(x[:, : self.seen.end], self.seen.keys, 0)

    def _shown(self, x: jax.Array, live: jax.Array | None, hidden: float) -> jax.Array:
        x = spread(x, self.b)
        if live is None:
            return x
        return jnp.where(live.reshape(*live.shape, *(1,) * (x.ndim - 2)), x, jnp.asarray(hidden, x.dtype))
