"""The derivatives of the three primitives: forward mode, reverse mode, Taylor mode."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.core import ShapedArray
from jax.experimental import jet
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.extend.core.primitives import remat_p
from jax.interpreters import ad, partial_eval

from jattn._call.modes import ordinary
from jattn._derivatives.primitives import (
    attend_backward,
    attend_p,
    attend_tangent,
    backward_twin,
    chosen,
    parts,
    placed,
    tangent_twin,
    with_infinity,
    without_infinity,
)
from jattn._terms import AnyArray
from jattn.backends.contract import Result, Spec

RESIDUAL_NAMES = ("jattn_out", "jattn_lse")
"""Names by which `jax.checkpoint`'s policies know attention's residuals, out and lse (with what rounding took from it):
where both are saved, the kernel does not run again.

>>> import jax, jattn
>>> policy = jax.checkpoint_policies.save_only_these_names(*jattn.RESIDUAL_NAMES)
>>> layer = jax.checkpoint(lambda x: jattn.attention(x, x, x), policy=policy)
"""


Tangent = jax.Array | ad.Zero  # the name serves cotangents too, which are of the same types


@ordinary
def _attend_jvp(args: Sequence[AnyArray], tangents: Sequence[Tangent], *, spec: Spec):
    held = without_infinity(attend_p.bind(*args, spec=spec))
    of_out, of_lse = RESIDUAL_NAMES
    held = Result(*map(checkpoint_name, held, (of_out, of_lse, of_lse)))
    active = (True,) * 3 + tuple(not isinstance(x, ad.Zero) for x in tangents[3:])
    moving = map(ad.instantiate_zeros, chosen(tangents, active))
    dout, dlse = attend_tangent.bind(*args, *held, *moving, spec=spec, active=active)
    # what is returned is made of what is saved, so that a policy that saves both leaves the kernel without a use
    return list(with_infinity(held)), [dout, dlse, ad.Zero(jax.typeof(held.remainder).to_tangent_aval())]


@ordinary
def _attend_transpose(cotangents: Sequence[Tangent], *args: Any, spec: Spec):
    """`attend` is linear in the values, and lse does not depend on them."""
    if [n for n, x in enumerate(args) if ad.is_undefined_primal(x)] != [2]:
        raise NotImplementedError(
            "attention is linear in the values alone: jax.linear_transpose takes a function of them"
        )
    filled = _without_values(args, args[2].aval)
    held = without_infinity(attend_p.bind(*filled, spec=spec))
    active = (True,) * 3 + (False,) * (len(args) - 3)
    dout, dlse, _ = (ad.instantiate_zeros(x) for x in cotangents)
    _, _, dv = attend_backward.bind(*filled, *held, dout, dlse, spec=spec, active=active)
    return [None, None, dv, *[None] * (len(args) - 3)]


@ordinary
def _attend_partial(trace: Any, *tracers: Any, spec: Spec):
    """Where the values alone are unknown, as in `jax.linear_transpose`, lse is known: what a call makes of it, such as
    the sinks' share, is then a number that a linear function is scaled by."""
    outs = trace.default_process_primitive(attend_p, tracers, {"spec": spec})
    if [n for n, x in enumerate(tracers) if not x.is_known()] != [2]:
        return outs
    known = [None if n == 2 else x.pval.get_known() for n, x in enumerate(tracers)]
    held = attend_p.bind(*_without_values(known, tracers[2].aval), spec=spec)
    return [outs[0], *held[1:]]


def _without_values(args: Sequence[Any], values: ShapedArray) -> list[Any]:
    """The arguments with zeros for values, which lie where the values do along Explicit axes."""
    return [*args[:2], ad.instantiate_zeros(ad.Zero(values)), *args[3:]]


def _attend_jet(primals: Sequence[AnyArray], series: Sequence[Sequence[jax.Array]], *, spec: Spec):
    """Taylor coefficients along the curve x + x1 t + x2 t^2 + ..: its derivatives by t, in forward mode, nested."""
    order = len(series[0])

    def along(t: jax.Array):
        powers = [t**n for n in range(1, order + 1)]
        move = lambda x, terms: jnp.asarray(sum((p * y for p, y in zip(powers, terms, strict=True)), start=x), x.dtype)
        moved = [
            move(x, y) if jnp.issubdtype(x.dtype, jnp.floating) else x for x, y in zip(primals, series, strict=True)
        ]
        return attend_p.bind(*moved, spec=spec)

    def differentiated(fn: Callable, _: int):
        return lambda t: jax.jvp(fn, (t,), (jnp.ones_like(t),))[1]

    start = jnp.zeros((), jnp.promote_types(primals[0].dtype, jnp.float32))
    derivatives = itertools.accumulate(range(order), differentiated, initial=along)
    out, *terms = ([x / math.factorial(n) for x in fn(start)] for n, fn in enumerate(derivatives))
    return out, [list(x) for x in zip(*terms, strict=True)]


def _remat_jet(primals: Sequence[Any], series: Sequence[Sequence[Any]], *, jaxpr: Any, **params: Any):
    """Taylor coefficients of what `jax.checkpoint` wraps: those of the function itself, of which nothing is kept."""
    del params
    moving = [jnp.issubdtype(x.dtype, jnp.floating) for x in primals]

    def fn(*values: jax.Array):
        full = [p if x is None else x for p, x in zip(primals, placed(values, moving), strict=True)]
        return jaxpr_as_fun(ClosedJaxpr(jaxpr, ()))(*full)

    own, terms = tuple(chosen(primals, moving)), tuple(map(list, chosen(series, moving)))
    return jet.jet(fn, own, terms, factorial_scaled=False)


def _attend_tangent_transpose(cotangents: Sequence[Tangent], *flat: Any, spec: Spec, active: tuple[bool, ...]):
    args, held, tangents = parts(flat, active)
    upstream = map(ad.instantiate_zeros, cotangents)
    grads = attend_backward.bind(*args, *held, *upstream, spec=spec, active=active)
    linear = [g if ad.is_undefined_primal(x) else None for g, x in zip(grads, tangents, strict=True)]
    return [None] * (len(args) + len(held)) + linear


def _twin_jvp(twin: Callable) -> Callable:
    @ordinary
    def rule(primals: Sequence[AnyArray], tangents: Sequence[Tangent], **params: Any):
        moving = tuple(not isinstance(x, ad.Zero) for x in tangents)

        def fn(*values: jax.Array):
            full = [p if x is None else x for p, x in zip(primals, placed(values, moving), strict=True)]
            return list(twin(*full, **params))

        return jax.jvp(fn, tuple(chosen(primals, moving)), tuple(chosen(tangents, moving)))

    return rule


ad.primitive_jvps[attend_p] = _attend_jvp
ad.primitive_jvps[attend_tangent] = _twin_jvp(tangent_twin)
ad.primitive_jvps[attend_backward] = _twin_jvp(backward_twin)
ad.primitive_transposes[attend_p] = _attend_transpose
partial_eval.custom_partial_eval_rules[attend_p] = _attend_partial
ad.primitive_transposes[attend_tangent] = _attend_tangent_transpose
jet.jet_rules[attend_p] = ordinary(_attend_jet)
# What computes whole rows is rematerialised, for which Taylor mode has no rule of its own.
jet.jet_rules.setdefault(remat_p, _remat_jet)
