"""Three JAX primitives, so that every derivative of a fused kernel exists.

`attend (args) -> result`, which is out, lse and lse's remainder; `attend_tangent (args, result, tangents) -> (dout,
dlse)`, linear in the tangents; `attend_backward (args, result, dout, dlse) -> gradients`, its transpose.  `args` are q,
k, v and the operands.

Reverse mode: the JVP rule of `attend` binds `attend_tangent`, whose transpose rule binds `attend_backward`.  Each
lowers to its backend's kernel.  Higher orders: the JVP rules of the latter two differentiate their twins, derivatives
of `twin.attend`.  There the result counts as a function of the args, so the twins ignore it.

`active` says which args have tangents and gradients: q, k, v and the operands that are being differentiated.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jattn._call.layouts import as_axes
from jattn._call.modes import ordinary
from jattn._derivatives import lowering, twin
from jattn._derivatives.lowering import plain
from jattn._derivatives.mapped import BatchFold, lengths
from jattn._derivatives.partitioning import Roles, read
from jattn._derivatives.symbolic import one_by_one
from jattn._terms import AnyArray
from jattn.backends.contract import Key, Lse, Out, Query, Result, Spec, Tangents, Value

T = TypeVar("T")


def attend(spec: Spec, q: Query, k: Key, v: Value, operands: Sequence[AnyArray]) -> tuple[Out, Lse]:
    """out `[b, t, h, e]` and lse `[b, t, h]` of softmax attention, by the kernels of `spec.backend`."""
    out, lse, _ = attend_p.bind(*_together([q, k, v, *operands]), spec=spec)
    return out, lse


def _together(args: Sequence[AnyArray]) -> list[Any]:
    """Inside `jax.shard_map`: the args made to vary over the same mesh axes, so that gradients are summed over them."""
    own = [jax.typeof(x).manual_axis_type.varying for x in args]
    missing = [tuple(sorted(frozenset().union(*own) - x)) for x in own]
    return [jax.lax.pcast(x, axes, to="varying") if axes else x for x, axes in zip(args, missing, strict=True)]


def chosen(values: Iterable[T], active: Sequence[bool]) -> list[T]:
    return list(itertools.compress(values, active))


def placed(values: Iterable[T], active: Sequence[bool]) -> list[T | None]:
    """The inverse of `chosen`, with None in the other places."""
    rest = iter(values)
    return [next(rest) if a else None for a in active]


def parts(flat: Sequence[Any], active: tuple[bool, ...]) -> tuple[Any, Any, Any]:
    """The inputs of a derivative apart: the args, the result, and the tangents or cotangents."""
    n, m = len(active), len(active) + len(Result._fields)
    return flat[:n], flat[n:m], flat[m:]


# Residuals


def without_infinity(result: Sequence[jax.Array]) -> Result:
    """The result as residuals: the greatest number stands for an lse of -inf, which `jax_debug_infs` would not let
    pass."""
    out, lse, remainder = result
    return Result(out, jnp.where(jnp.isneginf(lse), jnp.finfo(lse.dtype).max, lse), remainder)


def with_infinity(held: Sequence[jax.Array]) -> Result:
    out, lse, remainder = held
    return Result(out, jnp.where(lse == jnp.finfo(lse.dtype).max, -jnp.inf, lse), remainder)


# What each computes


def _forward(*args: jax.Array, spec: Spec):
    fold = BatchFold(spec, args)
    q, k, v, *operands = (fold.arg(n, x) for n, x in enumerate(args))
    return [fold.unfold(x) for x in spec.backend.forward(fold.folded, q, k, v, operands)]


def _tangent(*flat: jax.Array, spec: Spec, active: tuple[bool, ...]):
    args, held, tangents = parts(flat, active)
    fold = BatchFold(spec, args, held)
    q, k, v, *operands = (fold.arg(n, x) for n, x in enumerate(args))
    moving: list[Any] = [None if x is None else fold.arg(n, x) for n, x in enumerate(placed(tangents, active))]
    dq, dk, dv = moving[:3]
    moved = Tangents(dq, dk, dv, moving[3:])
    held = with_infinity([fold.row(x) for x in held])
    return [fold.unfold(x) for x in spec.backend.tangent(fold.folded, q, k, v, operands, held, moved)]


def _backward(*flat: jax.Array, spec: Spec, active: tuple[bool, ...]):
    args, held, cotangents = parts(flat, active)
    fold = BatchFold(spec, args, (*held, *cotangents))
    q, k, v, *operands = (fold.arg(n, x) for n, x in enumerate(args))
    dout, dlse = map(fold.row, cotangents)
    held = with_infinity([fold.row(x) for x in held])
    dq, dk, dv, doperands = spec.backend.backward(fold.folded, q, k, v, operands, held, dout, dlse, active[3:])
    gradients = [dq, dk, dv, *chosen(doperands, active[3:])]
    return [fold.gradient(n, x) for n, x in zip(chosen(range(len(active)), active), gradients, strict=True)]


# Their twins


def _of_active(spec: Spec, args: Sequence[jax.Array], active: tuple[bool, ...]) -> Callable:
    """`twin.attend` as a function of the active args, with results that lie where those of `attend` do."""

    def fn(*values: jax.Array):
        full = [a if x is None else x for a, x in zip(args, placed(values, active), strict=True)]
        rows, shapes = twin.attend(spec, full), _rows_shapes([*map(jax.typeof, full)], spec.axes, spec)
        if AxisType.Explicit not in shapes[0].sharding.mesh.axis_types:
            return list(rows)
        return [jax.sharding.reshard(x, y.sharding) for x, y in zip(rows, shapes, strict=True)]

    return fn


def tangent_twin(*flat: jax.Array, spec: Spec, active: tuple[bool, ...]):
    args, _, tangents = parts(flat, active)
    fn = _of_active(spec, args, active)
    return jax.jvp(fn, tuple(chosen(args, active)), tuple(tangents))[1]


def backward_twin(*flat: jax.Array, spec: Spec, active: tuple[bool, ...]):
    args, _, cotangents = parts(flat, active)
    _, pull = jax.vjp(_of_active(spec, args, active), *chosen(args, active))
    return list(pull(list(cotangents)))


# Shapes


def _rows_shapes(args: Sequence[ShapedArray], axes: Sequence[str], spec: Spec) -> tuple[ShapedArray, ShapedArray]:
    """Shapes of out and lse, which lie in a mesh where the call does, and along queries as q."""
    q, v, n = args[0], args[2], len(spec.mapped)
    shapes = [x.shape for x in args]
    over = lengths(shapes, axes, n)
    there = read([x.sharding.spec for x in args], axes, shapes, over)
    queries, taken = as_axes(q.sharding.spec[n + 1]), {*there.heads}.union(*there.batch)
    lies = *there.batch, () if taken & {*queries} else queries, there.heads
    where, rows = PartitionSpec(*(x or None for x in lies)), (*over, *q.shape[n + 1 : n + 3])
    of = lambda shape, dtype, where: q.update(
        shape, dtype, weak_type=False, sharding=NamedSharding(q.sharding.mesh, where)
    )
    out = of((*rows, v.shape[-1]), spec.dtype, PartitionSpec(*where, None))
    return out, of(rows, jnp.promote_types(q.dtype, jnp.float32), where)


def _attend_shapes(*args: ShapedArray, spec: Spec):
    out, lse = _rows_shapes(args, spec.axes, spec)
    return [out, lse, lse]


def _tangent_shapes(*flat: ShapedArray, spec: Spec, active: tuple[bool, ...]):
    return list(_rows_shapes(flat, [*spec.axes, *["bth"] * 3, *chosen(spec.axes, active)], spec))


def _backward_shapes(*flat: ShapedArray, spec: Spec, active: tuple[bool, ...]):
    return [x.update(weak_type=False) for x in chosen(flat[: len(active)], active)]


def effects(compute: Callable, args: Sequence[ShapedArray], params: dict[str, Any]) -> set[Any]:
    """The effects of a simulator that calls back to Python, known by tracing it.  Kernels have none."""
    spec = params["spec"]
    if not (spec.target.interpret and spec.backend.calls_back):
        return set()
    return set(jax.make_jaxpr(functools.partial(compute, **params))(*plain(args)).effects)


def _unless_empty(compute: Callable, shapes: Callable) -> Callable:
    """`compute`, but zeros where a vmap is over nothing: all that has elements are gradients of what it shares."""

    def run(*args: jax.Array, spec: Spec, **params: Any):
        if any(0 in x.shape[: len(spec.mapped)] for x in args):
            return [jnp.zeros(x.shape, x.dtype) for x in shapes(*map(jax.typeof, args), spec=spec, **params)]
        return compute(*args, spec=spec, **params)

    return run


def _primitive(name: str, compute: Callable, shapes: Callable, roles: Callable[..., Roles]) -> Primitive:
    # Both are asked later too, under the settings of then: as a call is lowered, and where a traced one is bound again.
    compute = ordinary(_unless_empty(one_by_one(compute, shapes, roles), shapes))
    shapes = ordinary(shapes)
    primitive = Primitive(name)
    primitive.multiple_results = True
    primitive.def_impl(compute)

    def abstract(*args: ShapedArray, **params: Any):
        return shapes(*args, **params), effects(compute, args, params)

    primitive.def_effectful_abstract_eval(abstract)
    lowering.register(primitive, compute, roles)
    return primitive


_ROWS = ("bth",) * len(Result._fields)


def _attend_roles(spec: Spec) -> Roles:
    return Roles(spec.axes, _ROWS)


def _tangent_roles(spec: Spec, active: tuple[bool, ...]) -> Roles:
    return Roles([*spec.axes, *_ROWS, *chosen(spec.axes, active)], _ROWS[:2])


def _backward_roles(spec: Spec, active: tuple[bool, ...]) -> Roles:
    return Roles([*spec.axes, *_ROWS, *_ROWS[:2]], chosen(spec.axes, active), sums=True)


attend_p = _primitive("attend", _forward, _attend_shapes, _attend_roles)
attend_tangent = _primitive("attend_tangent", _tangent, _tangent_shapes, _tangent_roles)
attend_backward = _primitive("attend_backward", _backward, _backward_shapes, _backward_roles)
