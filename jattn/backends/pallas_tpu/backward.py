"""The backward kernel behind the contract."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jattn_kernels.tpu.backward import backward as run

from jattn._terms import AnyArray
from jattn.backends.batches import folded
from jattn.backends.contract import Gradients, Key, Lse, Out, Query, Result, Spec, Value
from jattn.backends.pallas.backward import in_32_bits
from jattn.backends.pallas.terms import of_rows_that_see
from jattn.backends.pallas_tpu.call import Call
from jattn.backends.pallas_tpu.terms import heads_first


@in_32_bits
def backward(
    spec: Spec,
    q: Query,
    k: Key,
    v: Value,
    operands: Sequence[AnyArray],
    result: Result,
    dout: Out,
    dlse: Lse,
    active: Sequence[bool],
) -> Gradients:
    """Gradients; see `jattn.backends.contract.Fused.backward`."""
    call = Call(spec, q, k, v, operands, "backward")
    terms, functions = call.terms, call.terms.functions()
    out, *of_lse = result
    wide = lambda x: x.astype(jnp.float32)
    delta, (lse, share) = jnp.sum(wide(dout) * wide(out), -1) - dlse, functions.lse_and_share(*of_lse)
    # All gradients are linear in these: the kernel need not multiply each weight.
    rows, dout, delta = q, wide(dout) * share[..., None], delta * share
    if terms.blind:  # what stands in rows that see nothing reaches nothing: it would as 0 * NaN
        rows, dout, delta = (of_rows_that_see(x, lse) for x in (q, dout, delta))
    flat = lambda x: jnp.swapaxes(x, 1, 2)
    arrays, pull = jax.vjp(terms.arrays, operands)
    slots = terms.active(active)
    dq, dk, dv, of_slots = run(
        terms.query(rows), heads_first(k), heads_first(v), heads_first(dout.astype(v.dtype)),
        flat(lse), flat(delta), arrays, call.layouts, slots, functions, call.work, call.frame.sizes,
        dq_dtype=q.dtype, factor=terms.scale, **call.options,
    )  # fmt: skip
    dq, dk, dv = (heads_first(x) for x in (dq, dk, dv))
    rest = iter(of_slots)
    cotangents = [_cotangent(x, next(rest) if y else None) for x, y in zip(arrays, slots, strict=True)]
    (doperands,) = pull(cotangents)
    doperands = [x if y else None for x, y in zip(doperands, active, strict=True)]
    return Gradients(folded(dq, q), folded(dk, k), folded(dv, v), doperands)


def _cotangent(x: jax.Array, gradient: jax.Array | None) -> Any:
    """A gradient in the shape and dtype of its array; zeros where there is none."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return np.zeros(x.shape, jax.dtypes.float0)
    return jnp.zeros_like(x) if gradient is None else gradient[tuple(map(slice, x.shape))].astype(x.dtype)
