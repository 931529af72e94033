"""Softmax attention by cuDNN."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jattn.backends.contract import Key, Query, Result, Spec, Value
from jattn.backends.cudnn.call import Call


def forward(spec: Spec, q: Query, k: Key, v: Value, operands: Sequence[jax.Array]) -> Result:
    """Softmax attention; see `jattn.backends.contract.Fused.forward`."""
    call = Call(spec, q, k, v, operands)
    out, lse = spec.backend.settings.forward(call.rows(q), call.keys(k), call.keys(v), call.seen.lengths, call.kind)
    lse = call.rows(jnp.swapaxes(lse, 1, 2), -jnp.inf)
    return Result(call.rows(out), lse, jnp.zeros_like(lse))
