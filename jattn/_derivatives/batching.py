"""vmap of the three primitives: the new axis stays an axis of its own, in front (`mapped` says until when)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import batching
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jattn._call.layouts import as_axes
from jattn._derivatives.primitives import attend_backward, attend_p, attend_tangent, parts, placed
from jattn._terms import AnyArray
from jattn.backends.contract import Spec


def _lifted(
    axis: Any, flat: Sequence[AnyArray], dims: Sequence[int | None], spec: Spec
) -> tuple[list[jax.Array], Spec]:
    """The arrays with one more axis in front, of length 1 where they lack it."""
    arrays = [jnp.asarray(x) for x in flat]
    lifted = [x[None] if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(arrays, dims, strict=True)]
    return lifted, dataclasses.replace(spec, mapped=(as_axes(axis.spmd_name), *spec.mapped))


def _attend_batch(axis: Any, flat: Sequence[AnyArray], dims: Sequence[int | None], *, spec: Spec):
    lifted, spec = _lifted(axis, flat, dims, spec)
    result = attend_p.bind(*lifted, spec=spec)
    return result, [0] * len(result)


def _attend_tangent_batch(
    axis: Any, flat: Sequence[AnyArray], dims: Sequence[int | None], *, spec: Spec, active: tuple[bool, ...]
):
    """An array and its tangent have the same shape: where one of them has the axis the other gets it."""
    lifted, spec = _lifted(axis, flat, dims, spec)
    _, _, tangents = parts(range(len(flat)), active)
    for m, at in enumerate(placed(tangents, active)):
        if at is not None and (dims[m] is None) != (dims[at] is None):
            short, like = (m, at) if dims[m] is None else (at, m)
            lifted[short] = _spread(lifted[short], lifted[like])
    out = attend_tangent.bind(*lifted, spec=spec, active=active)
    return out, [0] * len(out)


def _attend_backward_batch(
    axis: Any, flat: Sequence[AnyArray], dims: Sequence[int | None], *, spec: Spec, active: tuple[bool, ...]
):
    """A gradient has the shape of its array, which therefore gets the axis even if all elements share it."""
    lifted, spec = _lifted(axis, flat, dims, spec)
    like = next(x for x, d in zip(lifted, dims, strict=True) if d is not None)
    for m, y in enumerate(active):
        if y and dims[m] is None:
            lifted[m] = _spread(lifted[m], like)
    grads = attend_backward.bind(*lifted, spec=spec, active=active)
    return grads, [0] * len(grads)


def _spread(x: jax.Array, like: jax.Array) -> jax.Array:
    """`x` repeated along its first axis, which lies on devices as that of `like` does."""
    placed, shape = jax.typeof(like).sharding, (like.shape[0], *x.shape[1:])
    if AxisType.Explicit not in placed.mesh.axis_types:
        return jnp.broadcast_to(x, shape)
    own = PartitionSpec(*placed.spec[:1], *jax.typeof(x).sharding.spec[1:])
    return jnp.broadcast_to(x, shape, out_sharding=NamedSharding(placed.mesh, own))


def _register(primitive: Primitive, rule: Callable[..., Any]) -> None:
    def asked(axis: Any, flat: Sequence[AnyArray], dims: Sequence[int | None], **params: Any):
        if all(d is None for d in dims):  # such rules are asked of everything inside a vmap
            results = primitive.bind(*flat, **params)
            return results, [None] * len(results)
        return rule(axis, flat, dims, **params)

    batching.fancy_primitive_batchers[primitive] = asked


_register(attend_p, _attend_batch)
_register(attend_tangent, _attend_tangent_batch)
_register(attend_backward, _attend_backward_batch)
