"""Three JAX primitives, so that every derivative of a fused kernel exists.

`attend (args) -> result`, which is out, lse and lse's remainder; `attend_tangent (args, result, tangents) -> (dout,
dlse)`, linear in the tangents; `attend_backward (args, result, dout, dlse) -> gradients`, its transpose.  `args` are q,
k, v and the operands.

Reverse mode: the JVP rule of `attend` binds `attend_tangent`, whose transpose rule binds `attend_backward`.  Each
lowers to its backend's kernel.  Higher orders: the JVP rules of the latter two differentiate their twins, derivatives
of `_strips.attend`.  There the result counts as a function of the args, so the twins ignore it.

`active` says which args have tangents and gradients: q, k, v and the operands that are being differentiated.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.core import ShapedArray
from jax.experimental import jet
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

from jattn import _strips
from jattn._modes import ordinary
from jattn._problem import Result, Spec
from jattn._target import ANY


def attend(spec: Spec, q: jax.Array, k: jax.Array, v: jax.Array, operands: list[Any]) -> tuple[jax.Array, jax.Array]:
    """out `[b, t, h, e]` and lse `[b, t, h]` of softmax attention, by the kernels of `spec.backend`."""
    out, lse, _ = _attend.bind(*_together([q, k, v, *operands]), spec=spec)
    return out, lse


def _together(args: list[Any]) -> list[Any]:
    """Inside `jax.shard_map`: the args made to vary over the same mesh axes, so that gradients are summed over them."""
    own = [jax.typeof(x).manual_axis_type.varying for x in args]
    missing = [tuple(sorted(frozenset().union(*own) - x)) for x in own]
    return [jax.lax.pcast(x, axes, to="varying") if axes else x for x, axes in zip(args, missing, strict=True)]


def _chosen(values: Any, active: tuple[bool, ...]) -> list[Any]:
    return list(itertools.compress(values, active))


def _placed(values: Any, active: tuple[bool, ...]) -> list[Any]:
    """The inverse of `_chosen`, with None in the other places."""
    rest = iter(values)
    return [next(rest) if a else None for a in active]


def _parts(flat: Any, active: tuple[bool, ...]) -> tuple[Any, Any, Any]:
    """Of the inputs of a derivative: the args, the result, and the tangents or cotangents."""
    n, m = len(active), len(active) + len(Result._fields)
    return flat[:n], flat[n:m], flat[m:]


# What each computes


def _forward(*args, spec):
    return list(spec.kernels().forward(spec, *args[:3], list(args[3:])))


def _tangent(*flat, spec, active):
    args, held, tangents = _parts(flat, active)
    tangents = _placed(tangents, active)
    moved = *tangents[:3], tangents[3:]
    return list(spec.kernels().tangent(spec, *args[:3], list(args[3:]), _with_infinity(held), moved))


def _backward(*flat, spec, active):
    args, held, (dout, dlse) = _parts(flat, active)
    dq, dk, dv, doperands = spec.kernels().backward(
        spec, *args[:3], list(args[3:]), _with_infinity(held), dout, dlse, active[3:]
    )
    return [dq, dk, dv, *_chosen(doperands, active[3:])]


# Their twins


def _of_active(spec, args, active) -> Callable:
    """`_strips.attend` as a function of the active args."""

    def fn(*values):
        q, k, v, *operands = [a if x is None else x for a, x in zip(args, _placed(values, active), strict=True)]
        return list(_strips.attend(spec, q, k, v, operands))

    return fn


def _tangent_twin(*flat, spec, active):
    args, _, tangents = _parts(flat, active)
    fn = _of_active(spec, args, active)
    return jax.jvp(fn, tuple(_chosen(args, active)), tuple(tangents))[1]


def _backward_twin(*flat, spec, active):
    args, _, cotangents = _parts(flat, active)
    _, pull = jax.vjp(_of_active(spec, args, active), *_chosen(args, active))
    return list(pull(list(cotangents)))


# Shapes


def _batch(spec, args) -> int:
    named = [*args[:3], *(x for x, axes in zip(args[3:], spec.signature.axes, strict=True) if "b" in axes)]
    return max(x.shape[0] for x in named)


def _attend_shapes(*args, spec):
    q, _, v = args[:3]
    shape = (_batch(spec, args), *q.shape[1:3])
    placed = NamedSharding(q.sharding.mesh, PartitionSpec(*q.sharding.spec[:3]))
    lse = q.update(shape, jnp.promote_types(q.dtype, jnp.float32), weak_type=False, sharding=placed)
    return [q.update((*shape, v.shape[-1]), spec.dtype, weak_type=False), lse, lse]


def _tangent_shapes(*flat, spec, active):
    out, lse, _ = _parts(flat, active)[1]
    return [out, lse]


def _backward_shapes(*flat, spec, active):
    return [x.update(weak_type=False) for x in _chosen(flat[: len(active)], active)]


def _plain(avals: Any) -> list[ShapedArray]:
    """Shapes and dtypes alone: kernels do not care where in a mesh they run."""
    return [ShapedArray(x.shape, x.dtype) for x in avals]


def _check_platform(traced: str, lowered: tuple[str, ...]) -> None:
    """Says so where a backend was chosen for another platform than it is compiled for, as `jax.export` may."""
    if traced != ANY and "tpu" in lowered and traced != "tpu":
        warnings.warn(
            f"attention was traced for {traced} and is compiled for {' and '.join(lowered)}, without TPU kernels: trace"
            " it inside jax.set_mesh of a mesh of TPU devices (those of jax.experimental.topologies need no TPU), or"
            " choose with implementation=",
            stacklevel=2,
        )


def _lowering(compute: Callable) -> Callable:
    lower = mlir.lower_fun(compute, multiple_results=True)

    def rule(ctx, *args, **params):
        _check_platform(params["spec"].target.platform, ctx.module_context.platforms)
        return lower(ctx.replace(avals_in=_plain(ctx.avals_in), avals_out=_plain(ctx.avals_out)), *args, **params)

    return rule


def _primitive(name: str, compute: Callable, shapes: Callable) -> Primitive:
    compute = ordinary(compute)  # what is lowered is traced later, under the settings of then
    primitive = Primitive(name)
    primitive.multiple_results = True
    primitive.def_impl(compute)
    primitive.def_abstract_eval(shapes)
    mlir.register_lowering(primitive, _lowering(compute))
    return primitive


_attend = _primitive("attend", _forward, _attend_shapes)
_attend_tangent = _primitive("attend_tangent", _tangent, _tangent_shapes)
_attend_backward = _primitive("attend_backward", _backward, _backward_shapes)


# Derivatives


RESIDUAL_NAMES = ("jattn_out", "jattn_lse")
"""Names by which `jax.checkpoint`'s policies know attention's residuals, out and lse (with what rounding took from it):
where both are saved, the kernel does not run again.

>>> import jax, jattn
>>> policy = jax.checkpoint_policies.save_only_these_names(*jattn.RESIDUAL_NAMES)
>>> layer = jax.checkpoint(lambda x: jattn.attention(x, x, x), policy=policy)
"""


def _without_infinity(result: Any) -> Result:
    """The result as residuals: the greatest number stands for an lse of -inf, which `jax_debug_infs` would not let
    pass."""
    out, lse, remainder = result
    return Result(out, jnp.where(jnp.isneginf(lse), jnp.finfo(lse.dtype).max, lse), remainder)


def _with_infinity(held: Any) -> Result:
    out, lse, remainder = held
    return Result(out, jnp.where(lse == jnp.finfo(lse.dtype).max, -jnp.inf, lse), remainder)


@ordinary
def _attend_jvp(args, tangents, *, spec):
    held = _without_infinity(_attend.bind(*args, spec=spec))
    of_out, of_lse = RESIDUAL_NAMES
    held = Result(*map(checkpoint_name, held, (of_out, of_lse, of_lse)))
    active = (True,) * 3 + tuple(not isinstance(x, ad.Zero) for x in tangents[3:])
    chosen = map(ad.instantiate_zeros, _chosen(tangents, active))
    dout, dlse = _attend_tangent.bind(*args, *held, *chosen, spec=spec, active=active)
    # what is returned is made of what is saved, so that a policy that saves both leaves the kernel without a use
    return list(_with_infinity(held)), [dout, dlse, ad.Zero(jax.typeof(held.remainder).to_tangent_aval())]


@ordinary
def _attend_transpose(cotangents, *args, spec):
    """`attend` is linear in the values, and lse does not depend on them."""
    if [n for n, x in enumerate(args) if ad.is_undefined_primal(x)] != [2]:
        raise NotImplementedError(
            "attention is linear in the values alone: jax.linear_transpose takes a function of them"
        )
    values = args[2].aval
    args = [*args[:2], jnp.zeros(values.shape, values.dtype), *args[3:]]
    held = _without_infinity(_attend.bind(*args, spec=spec))
    active = (True,) * 3 + (False,) * (len(args) - 3)
    dout, dlse, _ = (ad.instantiate_zeros(x) for x in cotangents)
    _, _, dv = _attend_backward.bind(*args, *held, dout, dlse, spec=spec, active=active)
    return [None, None, dv, *[None] * (len(args) - 3)]


def _attend_jet(primals, series, *, spec):
    """Taylor coefficients along the curve x + x1 t + x2 t^2 + ..: its derivatives by t, in forward mode, nested."""
    order = len(series[0])

    def along(t):
        powers = [t**n for n in range(1, order + 1)]
        move = lambda x, terms: jnp.asarray(sum((p * y for p, y in zip(powers, terms, strict=True)), start=x), x.dtype)
        moved = [
            move(x, y) if jnp.issubdtype(x.dtype, jnp.floating) else x for x, y in zip(primals, series, strict=True)
        ]
        return _attend.bind(*moved, spec=spec)

    def differentiated(fn, _):
        return lambda t: jax.jvp(fn, (t,), (jnp.ones_like(t),))[1]

    start = jnp.zeros((), jnp.promote_types(primals[0].dtype, jnp.float32))
    derivatives = itertools.accumulate(range(order), differentiated, initial=along)
    out, *terms = ([x / math.factorial(n) for x in fn(start)] for n, fn in enumerate(derivatives))
    return out, [list(x) for x in zip(*terms, strict=True)]


def _attend_tangent_transpose(cotangents, *flat, spec, active):
    args, held, tangents = _parts(flat, active)
    cotangents = map(ad.instantiate_zeros, cotangents)
    grads = _attend_backward.bind(*args, *held, *cotangents, spec=spec, active=active)
    linear = [g if ad.is_undefined_primal(x) else None for g, x in zip(grads, tangents, strict=True)]
    return [None] * (len(args) + len(held)) + linear


def _twin_jvp(twin: Callable) -> Callable:
    @ordinary
    def rule(primals, tangents, **params):
        moving = tuple(not isinstance(x, ad.Zero) for x in tangents)

        def fn(*values):
            full = [p if x is None else x for p, x in zip(primals, _placed(values, moving), strict=True)]
            return list(twin(*full, **params))

        return jax.jvp(fn, tuple(_chosen(primals, moving)), tuple(_chosen(tangents, moving)))

    return rule


ad.primitive_jvps[_attend] = _attend_jvp
ad.primitive_jvps[_attend_tangent] = _twin_jvp(_tangent_twin)
ad.primitive_jvps[_attend_backward] = _twin_jvp(_backward_twin)
ad.primitive_transposes[_attend] = _attend_transpose
ad.primitive_transposes[_attend_tangent] = _attend_tangent_transpose
jet.jet_rules[_attend] = ordinary(_attend_jet)


# vmap: the new axis joins the batch axis, in front.  Arrays that it leaves alone keep their length: element b of the
# call uses their entry b % length.  Where a gradient is wanted for each element, its array is made full length.


class _Fold:
    def __init__(self, args, dims, spec):
        self.size = next(x.shape[d] for x, d in zip(args, dims, strict=True) if d is not None)
        self.args = [x if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(args, dims, strict=True)]
        self.batched = [d is not None for d in dims]
        self.spec = spec
        self.axes = ["b"] * 3 + list(spec.signature.axes)
        n = len(self.axes)
        self.b = max(
            x.shape[1 if y else 0]
            for x, y, a in zip(self.args[:n], self.batched[:n], self.axes, strict=True)
            if "b" in a
        )

    def new_spec(self, wide) -> Spec:
        """The spec in which the operands that `wide` says have a batch axis."""
        axes = tuple("b" + a if w and "b" not in a else a for a, w in zip(self.axes[3:], wide[3:], strict=True))
        return dataclasses.replace(self.spec, signature=self.spec.signature._replace(axes=axes))

    def fold(self, n: int, axes: str, full: bool = False) -> jax.Array:
        """Argument n with the new axis joined to its batch axis; `full`: even if it does not have the new axis."""
        x, batched = self.args[n], self.batched[n]
        if not batched and not full:
            return x
        if "b" not in axes:
            x = x[:, None] if batched else x[None]
        if not batched:
            x = jnp.broadcast_to(x, (self.size, *x.shape))
        x = jnp.tile(x, (1, self.b // x.shape[1], *[1] * (x.ndim - 2)))
        return x.reshape(self.size * self.b, *x.shape[2:])

    def unfold(self, x: jax.Array, axes: str = "b", length: int | None = None) -> jax.Array:
        """The inverse; what did not have all of the batch axis is summed over it."""
        x = x.reshape(self.size, self.b, *x.shape[1:])
        if "b" not in axes:
            return x.sum(1)
        if length not in (None, self.b):
            x = x.reshape(self.size, self.b // length, length, *x.shape[2:]).sum(1)
        return x


def _attend_batch(args, dims, *, spec):
    f = _Fold(args, dims, spec)
    folded = [f.fold(n, axes) for n, axes in enumerate(f.axes)]
    result = _attend.bind(*folded, spec=f.new_spec(f.batched))
    return [f.unfold(x) for x in result], [0] * len(result)


def _attend_tangent_batch(flat, dims, *, spec, active):
    f = _Fold(flat, dims, spec)
    _, held, tangents = _parts(range(len(flat)), active)
    tangent_at = _placed(tangents, active)
    wide = [f.batched[m] or (at is not None and f.batched[at]) for m, at in enumerate(tangent_at)]
    folded = [f.fold(m, axes, w) for m, (axes, w) in enumerate(zip(f.axes, wide, strict=True))]
    folded += [f.fold(m, "b", True) for m in held]
    folded += [f.fold(at, f.axes[m], wide[m]) for m, at in enumerate(tangent_at) if at is not None]
    out = _attend_tangent.bind(*folded, spec=f.new_spec(wide), active=active)
    return [f.unfold(x) for x in out], [0, 0]


def _attend_backward_batch(flat, dims, *, spec, active):
    f, n = _Fold(flat, dims, spec), len(active)
    wide = [f.batched[m] or active[m] for m in range(n)]
    folded = [f.fold(m, axes, w) for m, (axes, w) in enumerate(zip(f.axes, wide, strict=True))]
    folded += [f.fold(m, "b", True) for m in range(n, len(flat))]
    grads = _attend_backward.bind(*folded, spec=f.new_spec(wide), active=active)
    lengths = [x.shape[1 if y else 0] if "b" in a else None for x, y, a in zip(f.args, f.batched, f.axes, strict=False)]
    own = zip(grads, _chosen(f.axes, active), _chosen(lengths, active), strict=True)
    return [f.unfold(*x) for x in own], [0] * len(grads)


batching.primitive_batchers[_attend] = _attend_batch
batching.primitive_batchers[_attend_tangent] = _attend_tangent_batch
batching.primitive_batchers[_attend_backward] = _attend_backward_batch
