"""A call on whole arrays as one on each device of a mesh."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding

from jattn._call.problem import Problem
from jattn._terms import FieldValue, Operand
from jattn.parallel._on_device import on_device
from jattn.parallel._sharded_call import ShardedCall


def over_mesh(problem: Problem, mesh: Mesh | AbstractMesh, call: ShardedCall) -> Any:
    """What `on_device` gives, of all devices: arrays are cut along the axes that the call names."""
    leaves, tree = jax.tree.flatten(problem, is_leaf=lambda x: isinstance(x, Operand))
    arrays = [x.array if isinstance(x, Operand) else x for x in leaves]
    axes = [x.axes if isinstance(x, Operand) else None for x in leaves]
    return _over_mesh(arrays, tree, tuple(axes), mesh, call)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _over_mesh(
    arrays: list[Any], tree: Any, of: tuple[str | None, ...], mesh: Mesh | AbstractMesh, call: ShardedCall
) -> Any:
    axes, whole = call.axes, jax.tree.unflatten(tree, arrays)
    split = whole.sizes["g"] % axes.count(axes.head) == 0  # else each device has query heads of one key head
    explicit = AxisType.Explicit in getattr(mesh, "axis_types", ())  # there arrays are to lie as is said
    at = lambda x, spec: jax.sharding.reshard(x, NamedSharding(mesh, spec)) if explicit else x
    specs = [
        (axes.spec("bth", 4) if x is whole.query else axes.spec("bsh", 4, split)) if a is None else axes.spec(a, x.ndim)
        for x, a in zip(arrays, of, strict=True)
    ]

    def body(*arrays: Any) -> Any:
        local = [x if a is None else Operand(x, a) for x, a in zip(arrays, of, strict=True)]
        problem: Problem = jax.tree.unflatten(tree, local)
        if not split:
            at = lax.axis_index(axes.head) * whole.sizes["g"] // axes.count(axes.head)
            own = lambda x: lax.dynamic_slice_in_dim(x, at, 1, 2)
            problem = dataclasses.replace(problem, key=own(problem.key), value=own(problem.value))
        origin, sizes = problem.origin, problem.sizes
        origin = dataclasses.replace(
            origin,
            b=_further(origin.b, axes.batch, sizes["b"]),
            h=origin.h if axes.head is None else _further(origin.first_head, axes.head, sizes["h"]),
        )
        return on_device(dataclasses.replace(problem, origin=origin), call)

    rows = axes.spec("bth", 4)
    out_specs = (rows, axes.spec("bth", 3)) if call.return_lse else rows
    return jax.shard_map(body, mesh=mesh, in_specs=tuple(specs), out_specs=out_specs)(*map(at, arrays, specs))


def _further(first: FieldValue, axis: str | None, size: int) -> FieldValue:
    """Where a device's share of an axis begins."""
    if axis is None:
        return first
    value = first.array if isinstance(first, Operand) else jnp.int32(first)
    return Operand(value + lax.axis_index(axis).astype(jnp.int32) * jnp.int32(size), "")
