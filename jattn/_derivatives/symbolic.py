"""Axes whose length is a symbol of `jax.export`: walked an element at a time, by the program of one element.

Tiles are cut while tracing, when of such a batch, or of such an axis of a vmap, nothing is known but a name.  Its
elements do not meet in attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jattn._derivatives.partitioning import Roles
from jattn.backends.contract import Spec


def one_by_one(compute: Callable, shapes: Callable, roles: Callable[..., Roles]) -> Callable:
    """`compute`, in which every axis that is a symbol has one element at a time; results that lack it are sums."""

    def run(*args: jax.Array, spec: Spec, **params: Any) -> Sequence[jax.Array]:
        if all(isinstance(n, int) for x in args for n in x.shape):
            return compute(*args, spec=spec, **params)
        of, results = roles(spec, **params), shapes(*map(jax.typeof, args), spec=spec, **params)
        for axis in range(len(spec.mapped) + 1):
            has = lambda x, axes, at=axis: (at < len(spec.mapped) or "b" in axes) and not isinstance(x.shape[at], int)
            given, made = ([*map(has, *x)] for x in ((args, of.inputs), (results, of.outputs)))
            if any(given):
                return _along(axis, lambda *args: run(*args, spec=spec, **params), args, given, results, made)
        return compute(*args, spec=spec, **params)

    return run


def _along(
    axis: int,
    one: Callable,
    args: Sequence[jax.Array],
    given: Sequence[bool],
    results: Sequence[Any],
    made: Sequence[bool],
) -> list[jax.Array]:
    """one(*args) for each element of an axis, which the `given` args have and the results that are `made` of it."""

    def apart(values: Sequence[Any], having: Sequence[bool]) -> tuple[list[Any], list[Any]]:
        """Those that have the axis, and the others."""
        pairs = [*zip(values, having, strict=True)]
        return [x for x, y in pairs if y], [x for x, y in pairs if not y]

    def step(sums: list[jax.Array], parts: list[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
        rest = iter(parts)
        outs = one(*(jnp.expand_dims(next(rest), axis) if y else x for x, y in zip(args, given, strict=True)))
        own, shared = apart(outs, made)
        return [x + y for x, y in zip(sums, shared, strict=True)], [jnp.squeeze(x, axis) for x in own]

    zeros = [jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)) for x in apart(results, made)[1]]
    parts = [jnp.moveaxis(x, axis, 0) for x in apart(args, given)[0]]
    sums, own = map(iter, jax.lax.scan(step, zeros, parts))
    return [
        jnp.moveaxis(next(own), 0, axis) if y else next(sums).astype(x.dtype)
        for x, y in zip(results, made, strict=True)
    ]
