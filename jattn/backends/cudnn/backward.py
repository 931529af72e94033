"""Gradients of softmax attention by cuDNN."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jattn.backends.batches import folded
from jattn.backends.contract import Gradients, Key, Lse, Out, Query, Result, Spec, Value
from jattn.backends.cudnn.call import Call


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
    call = Call(spec, q, k, v, operands)
    lse = jnp.swapaxes(call.rows(result.lse), 1, 2)  # finite where rows see nothing: exp(-inf - -inf) is NaN
    dq, dk, dv = spec.backend.settings.backward(
        call.rows(q), call.keys(k), call.keys(v), call.seen.lengths, call.rows(result.out), lse, call.rows(dout),
        call.kind,
    )  # fmt: skip
    past = ((0, 0), (0, k.shape[1] - call.seen.end), (0, 0), (0, 0))
    dk, dv = (jnp.pad(call.keys(x), past) for x in (dk, dv))
    return folded(call.rows(dq), q), folded(dk, k), folded(dv, v)
