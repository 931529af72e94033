"""The same from all keys at once, for derivatives of higher order."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jattn import _terms
from jattn._derivatives.twin import attend
from jattn._terms import AnyArray, Operand
from jattn.backends.contract import Key, Query, Spec, Value
from jattn.parallel._ring.ring import LEAD, Ring
from jattn.parallel._shares import unzigzag


def twin(spec: Spec, q: Query, k: Key, v: Value, operands: Sequence[AnyArray]) -> tuple[jax.Array, jax.Array]:
    """out and lse in differentiable JAX, from all keys at once: what derivatives of higher order are derivatives of."""
    ring = Ring(spec, q, k, operands)

    def gathered(x: Any, dim: int) -> jax.Array:
        x = lax.all_gather(ring.vary(x), ring.settings.axis, axis=dim, tiled=True)
        return unzigzag(x, ring.n, dim) if ring.settings.zigzag else x

    def with_all_keys(x: Any, axes: str) -> Any:
        if "s" not in axes:
            return x
        dim = axes.index("s")
        if "t" not in axes:
            return gathered(x, dim)
        return unzigzag(x, ring.n, dim) if ring.settings.zigzag else x

    k, v = gathered(k, 1), gathered(v, 1)
    every = [with_all_keys(x, axes) for x, axes in zip(operands, ring.axes, strict=True)]
    terms, own = spec.terms(list(range(len(operands)))), ring.terms.offsets
    lead = Operand(LEAD, own.lead.axes if isinstance(own.lead, Operand) else "")
    order, signature = _terms.split(dataclasses.replace(terms, offsets=dataclasses.replace(own, lead=lead)))
    plain = dataclasses.replace(spec, backend=ring.settings.inner, signature=signature)
    results = []
    for n, rows in enumerate(ring.shares.slices(ring.t)):
        start = jnp.asarray(ring.shares.chunk(ring.me, n) * ring.pieces.chunk[0], jnp.int32)
        led = start + (operands[own.lead.array] if isinstance(own.lead, Operand) else own.lead)
        of_rows = lambda x, axes, rows=rows: x[(slice(None),) * axes.index("t") + (rows,)] if "t" in axes else x
        args = [led if m == LEAD else of_rows(every[m], ring.axes[m]) for m in order]
        results.append(attend(plain, [q[:, rows], k, v, *args]))
    return jax.tree.map(lambda *x: jnp.concatenate(x, 1), *results)
