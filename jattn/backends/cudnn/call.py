"""cuDNN behind the contract: what is done around its two calls.

Tiles are multiplied whole, and 0 * NaN is NaN: so what nobody sees is 0 to cuDNN, whatever stands in it.  What it gives
for rows that see nothing, and for gradients of keys past a length, is not relied upon.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jattn.backends.batches import folded, spread
from jattn.backends.contract import Gradients, Key, Lse, Out, Query, Result, Spec, Value
from jattn.backends.cudnn import binding
from jattn.backends.cudnn.masked import Seen, seen


class _Call:
    """One call: what its mask shows, and its arrays as cuDNN takes them."""

    seen: Seen
    kind: binding.Kind

    def __init__(self, spec: Spec, q: jax.Array, k: jax.Array, v: jax.Array, operands: Sequence[Any]):
        terms = spec.terms(operands)
        lengths = [x.shape[0] for x in (q, k, v)]
        lengths += [x.shape[0] for x, axes in zip(operands, spec.signature.axes, strict=True) if "b" in axes]
        self.b = max(lengths)
        self.seen = seen(terms.mask, self.b, q.shape[1], k.shape[1])
        padded = self.seen.lengths is not None
        self.kind = binding.Kind(terms.compare.scale, self.seen.causal, self.seen.window, padded)

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


def forward(spec: Spec, q: Query, k: Key, v: Value, operands: Sequence[jax.Array]) -> Result:
    """Softmax attention; see `jattn.backends.contract.Fused.forward`."""
    call = _Call(spec, q, k, v, operands)
    out, lse = spec.backend.settings.forward(call.rows(q), call.keys(k), call.keys(v), call.seen.lengths, call.kind)
    lse = call.rows(jnp.swapaxes(lse, 1, 2), -jnp.inf)
    return Result(call.rows(out), lse, jnp.zeros_like(lse))


def backward(
    spec: Spec,
    q: Query,
    k: Key,
    v: Value,
    operands: list[jax.Array],
    result: Result,
    dout: Out,
    dlse: Lse,
    active: Sequence[bool],
) -> Gradients:
    """Gradients; see `jattn.backends.contract.Fused.backward`.

    cuDNN has none of lse: where there is one another backend computes all of them.  That is known at run time, or to
    XLA, which leaves the other branch out of programs that never ask for it.
    """
    own = lambda: _backward(spec, q, k, v, operands, result, dout)
    others = lambda: spec.backend.settings.of_lse.backward(spec, q, k, v, operands, result, dout, dlse, active)[:3]
    dq, dk, dv = jax.lax.cond(jnp.any(dlse != 0), others, own)
    return Gradients(dq, dk, dv, [None] * len(operands))  # which are lengths: integers have no gradients


def _backward(
    spec: Spec,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    operands: list[jax.Array],
    result: Result,
    dout: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    call = _Call(spec, q, k, v, operands)
    lse = jnp.swapaxes(call.rows(result.lse), 1, 2)  # finite where rows see nothing: exp(-inf - -inf) is NaN
    dq, dk, dv = spec.backend.settings.backward(
        call.rows(q), call.keys(k), call.keys(v), call.seen.lengths, call.rows(result.out), lse, call.rows(dout),
        call.kind,
    )  # fmt: skip
    past = ((0, 0), (0, k.shape[1] - call.seen.end), (0, 0), (0, 0))
    dk, dv = (jnp.pad(call.keys(x), past) for x in (dk, dv))
    return folded(call.rows(dq), q), folded(dk, k), folded(dv, v)
