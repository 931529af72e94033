"""Keys and values that are stored in few bits: they have no tangents, and derivatives are those of the same numbers in
the query's dtype."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jattn._derivatives import primitives
from jattn._terms import AnyArray
from jattn.backends.contract import Key, Lse, Out, Query, Spec, Value


def attend(spec: Spec, q: Query, k: Key, v: Value, operands: Sequence[AnyArray]) -> tuple[Out, Lse]:
    """`primitives.attend`, of keys and values that may be of few bits."""
    if any(x.dtype.itemsize == 1 for x in (k, v)):
        return _attend(spec, q, k, v, list(operands))
    return primitives.attend(spec, q, k, v, operands)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _attend(spec: Spec, q: jax.Array, k: jax.Array, v: jax.Array, operands: list[jax.Array]) -> tuple[Any, Any]:
    return primitives.attend(spec, q, k, v, operands)


@_attend.defjvp
def _attend_jvp(spec: Spec, primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    q, k, v, operands = primals
    k, v = (x.astype(q.dtype) if x.dtype.itemsize == 1 else x for x in (k, v))
    moved = (tangents[0], *map(jnp.zeros_like, (k, v)), tangents[3])
    return jax.jvp(functools.partial(primitives.attend, spec), (q, k, v, operands), moved)
