"""How a primitive becomes a program, for one device and for many.

On many devices it is one body a device, reached in three ways that are chosen while lowering:

- inside `jax.shard_map` over all axes of the mesh what is there is what a device has: the call is as on one device;
- Explicit axes say of each array where it lies, and `jax.shard_map`, in the lowering, takes it there;
- Auto axes are the partitioner's, which asks by `custom_partitioning`.  On TPU it does not ask (jax#38196): there
  `jattn.parallel.layout` has to say it, and the rest is as with Explicit axes.

Rules for derivatives and vmap know nothing of it.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax._src import dispatch, sharding_impls  # what JAX's own lowering of `custom_partitioning` is made of
from jax.core import ShapedArray
from jax.experimental.custom_partitioning import ArrayMapping, CompoundFactor, SdyShardingRule, custom_partitioning
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jattn._call.layouts import Axes, Layout, named
from jattn._call.targets import ANY
from jattn._derivatives.partitioning import Placement, PrimitiveCall, Roles

Of = Callable[..., Roles]
"""(spec, active): the roles of a primitive's arrays."""


def register(primitive: Primitive, compute: Callable, roles: Of) -> None:
    """Lowers a primitive that one device computes by `compute`."""
    mlir.register_lowering(primitive, _lowering(compute, roles))
    dispatch.prim_requires_devices_during_lowering.add(primitive)


def plain(avals: Iterable[Any]) -> list[ShapedArray]:
    """Shapes and dtypes alone: kernels do not care where in a mesh they run."""
    return [ShapedArray(x.shape, x.dtype) for x in avals]


def _check_platform(traced: str, lowered: Sequence[str]) -> None:
    """Says so where a backend was chosen for another platform than it is compiled for, as `jax.export` may."""
    if traced != ANY and "tpu" in lowered and traced != "tpu":
        warnings.warn(
            f"attention was traced for {traced} and is compiled for {' and '.join(lowered)}, without TPU kernels: trace"
            " it inside jax.set_mesh of a mesh of TPU devices (those of jax.experimental.topologies need no TPU), or"
            " choose with implementation=",
            stacklevel=2,
        )


def _lowering(compute: Callable, roles: Of) -> Callable:
    def rule(ctx: mlir.LoweringRuleContext, *args: Any, spec: Any, **params: Any):
        _check_platform(spec.target.platform, ctx.module_context.platforms)
        own = lambda *args, spec: compute(*args, spec=spec, **params)
        shapes = [x.shape for x in plain(ctx.avals_in)]
        call = PrimitiveCall(own, spec, roles(spec, **params), shapes, plain(ctx.avals_out))
        bare = ctx.replace(avals_in=plain(ctx.avals_in), avals_out=plain(ctx.avals_out))
        lowered = mlir.lower_fun(_placed(ctx, call), multiple_results=True)(bare, *args)
        if bare.tokens_out is not None:  # a simulator has effects, and so tokens
            ctx.set_tokens_out(bare.tokens_out)
        return lowered

    return rule


def register_alternatives(primitive: Primitive, alone: Callable, spread: Callable) -> None:
    """Lowers a primitive by `alone` where one device computes it, and for many by `spread`, of primitives that say how
    they lie."""

    def rule(ctx: mlir.LoweringRuleContext, *args: Any, **params: Any):
        compute = alone if _on_one_device(ctx) else spread
        return mlir.lower_fun(compute, multiple_results=True)(ctx, *args, **params)

    mlir.register_lowering(primitive, rule)
    dispatch.prim_requires_devices_during_lowering.add(primitive)


def _manual(ctx: mlir.LoweringRuleContext) -> frozenset[str]:
    """The axes of the mesh inside whose `jax.shard_map` a call is lowered."""
    return frozenset(getattr(ctx.module_context.axis_context, "manual_axes", ()))


def _free(ctx: mlir.LoweringRuleContext) -> list[tuple[str, int]]:
    """The other axes along which there are several devices, and how many."""
    aval: Any = ctx.avals_in[0]
    mesh = getattr(ctx.module_context.axis_context, "mesh", None) or aval.sharding.mesh
    return [x for x in mesh.shape_tuple if x[0] not in _manual(ctx) and x[1] > 1]


def _devices(ctx: mlir.LoweringRuleContext) -> int:
    """How many devices a program is lowered for."""
    context = ctx.module_context.axis_context
    mesh = getattr(context, "mesh", None)
    return mesh.size if mesh is not None else getattr(context, "num_devices", 1)


def _on_one_device(ctx: mlir.LoweringRuleContext) -> bool:
    """Whether what is there is all of a call: there is one device, or the call is inside a `jax.shard_map` over all
    axes."""
    return _devices(ctx) == 1 or bool(_manual(ctx) and not _free(ctx))


def _placed(ctx: mlir.LoweringRuleContext, call: PrimitiveCall) -> Callable:
    """The call as a function of whole arrays, or inside `jax.shard_map` of what is there of them."""
    context, spec, avals = ctx.module_context.axis_context, call.spec, list[Any](ctx.avals_in)
    mesh, manual = avals[0].sharding.mesh, _manual(ctx)
    concrete = getattr(context, "mesh", None)
    alone = lambda *args: call.compute(*args, spec=spec)
    if _on_one_device(ctx):
        return alone
    if symbols := [str(n) for shape in call.shapes for n in shape if not isinstance(n, int)]:
        raise NotImplementedError(
            f"attention on {_devices(ctx)} devices takes sizes that are numbers, not {symbols[0]}: export it for each"
            " size, or with implementation='reference'"
        )
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if any(kinds.get(name) == AxisType.Explicit for name, _ in _free(ctx)):
        specs = [x.sharding.spec for x in avals]
        warn_of_sequence(call.sequence(specs))
        return _mapped(call, mesh, manual, call.fitted(mesh.shape, call.read(specs)))
    if spec.target.layout is not None and spec.target.layout.mesh is not None:
        return _mapped(call, *_as_said(call, spec.target.layout, manual))
    if tuple(ctx.module_context.platforms) == ("tpu",):
        raise ValueError(
            f"attention on {_devices(ctx)} TPU devices with Auto axes, where JAX cannot ask how it is sharded: say"
            ' which mesh axes b and h lie on, with jattn.parallel.layout(batch="data", heads="model"), or make the'
            " axes Explicit"
        )
    if manual and spec.backend.twin is not None:  # a ring sends along manual axes: where asked these are not known
        return alone
    return _asked(call, None if concrete is None or not manual else _around(concrete, manual))


def warn_of_sequence(axes: Axes) -> None:
    """Says that queries or keys are gathered."""
    if axes:
        warnings.warn(
            f"attention gathers queries and keys, which are sharded along {named(axes)}: batch and heads stay sharded,"
            " a sequence does inside jattn.parallel alone",
            stacklevel=2,
        )


# By shard_map


def _as_said(
    call: PrimitiveCall, layout: Layout, manual: frozenset[str]
) -> tuple[AbstractMesh, frozenset[str], Placement]:
    """Where `jattn.parallel.layout` says that the call lies.  Axes of vmap have the names that `spmd_axis_name` gave
    them; the batch's are the batch axis's, or else that of the vmap inside which it does not divide."""
    assert layout.mesh is not None
    mesh, spmd = layout.mesh, {x for axes in call.spec.mapped for x in axes}
    free = lambda axes: tuple(x for x in axes if x not in manual)
    batch = free(x for x in layout.batch if x not in spmd)
    places = [free(axes) for axes in call.spec.mapped] + [()]
    tried = []
    for at in [n for n in reversed(range(len(places))) if not places[n]]:
        there = Placement((*places[:at], batch, *places[at + 1 :]), free(layout.heads))
        if (misfit := call.misfit(mesh.shape, there)) is None:
            return mesh, manual, there
        tried.append(misfit)
    raise ValueError(f"jattn.parallel.layout: {tried[0]}")


def _mapped(call: PrimitiveCall, mesh: AbstractMesh, manual: frozenset[str], placement: Placement) -> Callable:
    """By `jax.shard_map` over all axes that are not manual."""
    kinds = tuple(AxisType.Manual if x in manual else AxisType.Auto for x in mesh.axis_names)
    inside = mesh.update(axis_types=kinds)  # while lowering none is Explicit: only shapes are traced
    free, roles = {*mesh.axis_names} - manual, call.roles
    fn = jax.shard_map(
        call.body(mesh.shape, placement), mesh=inside, axis_names=free,
        in_specs=call.specs(mesh.shape, placement, roles.inputs, call.shapes),
        out_specs=list(call.specs(mesh.shape, placement, roles.outputs, [x.shape for x in call.results])),
        check_vma=False,
    )  # fmt: skip

    def run(*args: jax.Array):
        with jax.sharding.use_abstract_mesh(inside):
            return fn(*args)

    return run


# By the partitioner


def _asked(call: PrimitiveCall, around: Mesh | None) -> Callable:
    """By `custom_partitioning`: a rule of what may be split, and a body for how it has been.

    `around` is the mesh that a `jax.shard_map` over other axes has left.  JAX does not tell what is asked inside one of
    its names: shardings come and go as such of the devices alone.
    """
    # JAX asks this function for the shapes of results alone, for which zeros do
    zeros = lambda *args: [jnp.zeros(x.shape, x.dtype) for x in call.results]
    fn = custom_partitioning(zeros)

    def spec(mesh: Mesh, sharding: Any) -> PartitionSpec:
        if sharding is None or isinstance(sharding, NamedSharding):
            return PartitionSpec() if sharding is None else sharding.spec
        return sharding_impls.parse_flatten_op_sharding(sharding._hlo_sharding, mesh)[0]

    def partition(mesh: Mesh, inputs: Sequence[Any], outputs: Sequence[Any]):
        del outputs
        mesh = mesh if around is None else around
        specs = [spec(mesh, x.sharding) for x in inputs]
        warn_of_sequence(call.sequence(specs))
        placement, roles = call.fitted(mesh.shape, call.read(specs)), call.roles
        where = lambda axes, shapes: [NamedSharding(mesh, x) for x in call.specs(mesh.shape, placement, axes, shapes)]
        results = where(roles.outputs, [x.shape for x in call.results])
        return mesh, call.body(mesh.shape, placement), results, tuple(where(roles.inputs, call.shapes))

    rule = lambda mesh, inputs, outputs: _rule(call, mesh if around is None else around)
    fn.def_partition(partition=partition, sharding_rule=rule)
    return lambda *args: fn(*args)


def _around(mesh: Mesh, manual: frozenset[str]) -> Mesh:
    """The mesh of one place along the manual axes."""
    one = tuple(0 if x in manual else slice(None) for x in mesh.axis_names)
    return Mesh(mesh.devices[one], [x for x in mesh.axis_names if x not in manual])


def _rule(call: PrimitiveCall, mesh: Any) -> SdyShardingRule:
    """Which axes of the arrays are split together.

    Key heads are not split with query heads where an axis of the mesh has more devices than there are key heads: they
    would lie along a part of it, which JAX has no words for.
    """
    count = itertools.count()
    grouped = 1 < call.g < call.h
    tied = call.g == call.h or (grouped and not any(call.g % n and not call.h % n for n in mesh.shape.values()))

    def factor(at: int, axes: str, length: int) -> Any:
        axis = "b" if at < call.n else axes[at - call.n : at - call.n + 1]
        if axis == "b" and length == call.lengths[at]:
            return f"b{at}"
        if axis == "h":
            return CompoundFactor("g", "r") if grouped and tied else "h"
        if axis == "g" and tied:
            return "g" if grouped else "h"
        return f"alone{next(count)}"

    def mapping(axes: str, shape: Sequence[int]) -> ArrayMapping:
        return ArrayMapping(*(factor(at, axes, n) for at, n in enumerate(shape)))

    inputs = tuple(map(mapping, call.roles.inputs, call.shapes))
    outputs = tuple(mapping(a, x.shape) for a, x in zip(call.roles.outputs, call.results, strict=True))
    sizes: dict[str, Any] = {"r": call.h // call.g} if grouped and tied else {}
    return SdyShardingRule(inputs, outputs, **sizes)
