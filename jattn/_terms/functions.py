"""What users' functions may return: checked once for each, on a tile that is not square, before anything runs.

A function that is not elementwise would give another result for every tile size, silently.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.interpreters import partial_eval

from jattn import gates, masks, mods
from jattn._terms import Operand, working
from jattn._terms.closures import Closure
from jattn._terms.linear import nonlinear

T = TypeVar("T")
_ROWS, _COLUMNS = (
    1009,
    2003,
)  # primes, so that an axis of this length is one of the tile's; nothing of this size is made
_ACROSS = ("reduce_", "arg", "cum", "sort", "rev")  # what primitives that mix the entries of an axis begin with


def checked(terms: T, dtype: jnp.dtype) -> T:
    """The pytree of terms, whose functions hold no array that they do not use: a method reaches all of its owner's.

    Raises for the first function that is not what it must be.  `dtype` is the query's.
    """
    kinds = {mods.Function: "mods.function", masks.Function: "masks.function", gates.Function: "gates.function"}

    def of(x: Any) -> Any:
        if type(x) not in kinds or x.closure.unused:
            return x
        held, operands = _describe(x.held, dtype), _describe(x.operands, dtype)
        used = _check(kinds[type(x)], x.closure, held, operands, str(dtype))
        if all(used):
            return x
        closure, held = x.closure.without(x.held, used)
        return dataclasses.replace(x, closure=closure, held=held)

    return jax.tree.map(of, terms, is_leaf=lambda x: isinstance(x, (*kinds, Operand)))


_Description = tuple[tuple[int, ...], jnp.dtype, str]  # of an operand: shape, dtype and axes


def _describe(operands: Iterable[Operand], dtype: jnp.dtype) -> tuple[_Description, ...]:
    return tuple((x.array.shape, _canonical(working(x.array, dtype)), x.axes) for x in operands)


def _canonical(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype that JAX gives an array: 64 bits are 32 where x64 is off.  Random keys have one of their own."""
    return dtype if jnp.issubdtype(dtype, jax.dtypes.extended) else jax.dtypes.canonicalize_dtype(dtype)


def _tile(shape: tuple[int, ...], dtype: jnp.dtype, axes: str) -> jax.ShapeDtypeStruct:
    """An operand cut to the tile of one head."""
    along = [{"t": _ROWS, "s": _COLUMNS}[a] if a in axes else 1 for a in "ts"] if set("ts") & set(axes) else []
    return jax.ShapeDtypeStruct((*along, *shape[len(axes) :]), dtype)


def _trace(
    name: str, closure: Closure, held: Iterable[_Description], arguments: Iterable[jax.ShapeDtypeStruct]
) -> ClosedJaxpr:
    """The function as a jaxpr of the arguments."""
    arrays = [_tile(*x) for x in held]
    try:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            found = jax.make_jaxpr(lambda held, *rest: closure.build(held)(*rest))(arrays, *arguments)
    except (jax.errors.TracerBoolConversionError, ValueError) as error:
        if "truth value" not in str(error) and not isinstance(error, jax.errors.TracerBoolConversionError):
            raise
        raise TypeError(
            f"{name}: {closure.name} uses `and`, `or`, `not` or `if` on arrays: positions and scores come as tiles,"
            " so use & | ~ and jnp.where"
        ) from None
    if any(isinstance(x, Tracer) for x in found.consts):
        raise TypeError(
            f"{name}: {closure.name} uses a traced array that is out of reach when it runs: give it to the function as"
            " an operand, made with jattn.operand(array, axes)"
        )
    return found


@functools.lru_cache(maxsize=512)
def _check(
    name: str, closure: Closure, held: tuple[_Description, ...], operands: tuple[_Description, ...], dtype: str
) -> tuple[bool, ...]:
    """Which of the arrays that it closes over a function uses."""
    computed = jnp.promote_types(dtype, jnp.float32)
    score = [] if name == "masks.function" else [jax.ShapeDtypeStruct((_ROWS, _COLUMNS), computed)]
    positions = [jax.ShapeDtypeStruct(x, jnp.int32) for x in ((_ROWS, 1), (1, _COLUMNS))]
    arguments = [*score, *positions, *(_tile(*x) for x in operands)]
    traced = _trace(name, closure, held, arguments)
    if len(traced.out_avals) != 1:
        raise TypeError(f"{name}: {closure.name} must return one array, returns {len(traced.out_avals)}")
    (out,) = traced.out_avals
    floating = jnp.issubdtype(out.dtype, jnp.floating)
    if out.dtype != bool if name == "masks.function" else not floating:
        wanted = "bool" if name == "masks.function" else "floating-point numbers"
        raise TypeError(f"{name}: {closure.name} returns {out.dtype}, must return {wanted}")
    mixed = _across(traced.jaxpr)
    if mixed:
        raise ValueError(
            f"{name}: {closure.name} must be elementwise, but {mixed} mixes the entries of a tile: its result would"
            " depend on the tile sizes"
        )
    if any(x.startswith(("random_", "threefry")) for x in primitives(traced.jaxpr)):
        raise ValueError(
            f"{name}: {closure.name} draws random numbers, which would be the same in every tile: take"
            " jattn.gates.dropout or jattn.normalizers.gumbel, whose noise is a function of the position"
        )
    if name == "gates.function" and (reason := nonlinear(traced, len(held))):
        raise ValueError(
            f"{name}: {closure.name} must be linear in the weight, like `weight * f(i, j)`, but has {reason}: backends"
            " apply gates before they know the sum that weights are divided by"
        )
    _, used = partial_eval.dce_jaxpr(traced.jaxpr, [True])
    held_used, used = used[: len(held)], used[len(held) :]
    shapes = [x.shape[:2] for x, y in zip(arguments, used, strict=True) if y and len(x.shape) >= 2]
    least = [max((x[n] for x in shapes if x[n] in (_ROWS, _COLUMNS)), default=1) for n in (0, 1)]
    got = (1,) * (2 - len(out.shape)) + tuple(out.shape)
    if len(got) > 2 or any(n not in (want, full) for n, want, full in zip(got, least, (_ROWS, _COLUMNS), strict=True)):
        say = lambda shape: str(list(shape)).replace(str(_ROWS), "bt").replace(str(_COLUMNS), "bs")
        raise ValueError(
            f"{name}: {closure.name} must be elementwise: of a tile [bt, bs] it returns {say(out.shape)}, must return"
            f" {say(least)}"
        )
    return tuple(held_used)


def _across(jaxpr: Jaxpr) -> str:
    """The first primitive that mixes entries along an axis of the tile, "" if there is none."""
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name.startswith(_ACROSS):
            axes = next((params[x] for x in ("axes", "axis", "dimension", "dimensions") if x in params), ())
            axes = (axes,) if isinstance(axes, int) else axes
            shape = getattr(equation.invars[0].aval, "shape", ())
            if any(shape[x] in (_ROWS, _COLUMNS) for x in axes):
                return name
        for value in jax.tree.leaves(list(params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns") and (found := _across(inner)):
                return found
    return ""


def primitives(jaxpr: Jaxpr) -> set[str]:
    """Names of the primitives in a jaxpr and in those inside it."""
    names = {equation.primitive.name for equation in jaxpr.eqns}
    inner = [x for equation in jaxpr.eqns for x in jax.tree.leaves(list(equation.params.values()))]
    jaxprs = [getattr(x, "jaxpr", x) for x in inner]
    return names.union(*(primitives(x) for x in jaxprs if hasattr(x, "eqns")))
