"""What users' functions may return: checked once for each, on a tile that is not square, before anything runs.

A function that is not elementwise would give another result for every tile size, silently; and a gate that is not
linear in the weight another one on every backend, be it a function or a class of a user's own.  So would a normaliser
that says it is elementwise and is not: that is tried, on a few numbers.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.interpreters import partial_eval

from jattn import gates, masks, mods, normalizers
from jattn._terms import Operand, Origin, Signature, split, working
from jattn._terms.closures import Closure
from jattn._terms.linear import nonlinear
from jattn._terms.untraced import untraced

T = TypeVar("T")
# Primes, so that an axis of this length is one of the tile's; nothing of this size is made.
_ROWS, _COLUMNS = 1009, 2003
_OTHER = 1013, 2011  # another tile, of which an elementwise function computes the same
_ACROSS = ("reduce_", "arg", "cum", "sort", "rev", "fft", "conv_", "top_k", "approx_top_k", "select_and_")
"""What primitives that mix the entries of an axis begin with."""
_PARTS = ("slice", "dynamic_slice", "gather", "pad", "concatenate", "split")
"""What primitives that take some entries of an axis, or put others beside them, begin with."""


def checked(terms: T, dtype: jnp.dtype) -> T:
    """The pytree of terms, whose functions hold no array that they do not use: a method reaches all of its owner's.

    Raises for the first function, and the first gate of a user's own class, that is not what it must be.  `dtype` is
    the query's.
    """
    kinds = {
        mods.Function: "mods.function",
        masks.Function: "masks.function",
        gates.Function: "gates.function",
        normalizers.Function: "normalizers.function",
    }

    def of(x: Any) -> Any:
        if isinstance(x, mods.Bucketed):
            _check_bucket(f"{x.name}: bucket {x.closure.name}", x.closure, _describe(x.held, dtype))
            return x
        if type(x) not in kinds or x.closure.unused:
            return x
        held, operands = _describe(x.held, dtype), _describe(x.operands, dtype)
        told = getattr(x, "told", None)
        used, told_used = _check(kinds[type(x)], x.closure, held, operands, told, str(dtype))
        if told_used != told:
            x = dataclasses.replace(x, told=told_used)
        if all(used):
            return x
        closure, held = x.closure.without(x.held, used)
        return dataclasses.replace(x, closure=closure, held=held)

    terms = jax.tree.map(of, terms, is_leaf=lambda x: isinstance(x, (*kinds, mods.Bucketed, Operand)))
    for x in jax.tree.leaves(terms, is_leaf=_claims):
        if _claims(x):
            _check_claim(x, dtype)
    return terms


def _claims(x: object) -> bool:
    """Whether it is a gate, or a normaliser that says it is elementwise, of a user's own; others need no look."""
    if isinstance(x, normalizers.Function):
        return x.elementwise
    own = isinstance(x, gates.Gate) or (isinstance(x, normalizers.Normalizer) and x.elementwise)
    return own and type(x).__module__.partition(".")[0] != "jattn"


def _check_claim(x: Any, dtype: jnp.dtype) -> None:
    """Raises unless a gate is linear in the weight, or a normaliser elementwise; what holds for one holds for all of
    its class and signature."""
    arrays, signature = split(x.bound(*Origin().indices(1, 1)))
    operands = tuple(
        (x.shape, _canonical(working(x, dtype)), axes) for x, axes in zip(arrays, signature.axes, strict=True)
    )
    if isinstance(x, normalizers.Function):
        who = f"normalizers.function: {x.closure.name}"
    else:
        who = f"{'gates' if isinstance(x, gates.Gate) else 'normalizer'}: {type(x).__qualname__}"
    check = _linear if isinstance(x, gates.Gate) else _elementwise
    try:
        hash(signature)
    except TypeError:  # an attribute that is neither an array nor hashable
        return check.__wrapped__(who, signature, operands, str(dtype))
    return check(who, signature, operands, str(dtype))


_Description = tuple[tuple[int, ...], jnp.dtype, str]  # of an operand: shape, dtype and axes


def _describe(operands: Iterable[Operand], dtype: jnp.dtype) -> tuple[_Description, ...]:
    return tuple((x.array.shape, _canonical(working(x.array, dtype)), x.axes) for x in operands)


def _canonical(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype that JAX gives an array: 64 bits are 32 where x64 is off.  Random keys have one of their own."""
    return dtype if jnp.issubdtype(dtype, jax.dtypes.extended) else jax.dtypes.canonicalize_dtype(dtype)


def _tile(
    shape: tuple[int, ...], dtype: jnp.dtype, axes: str, size: tuple[int, int] = (_ROWS, _COLUMNS)
) -> jax.ShapeDtypeStruct:
    """An operand cut to the tile of one head."""
    along = [n if a in axes else 1 for a, n in zip("ts", size, strict=True)] if set("ts") & set(axes) else []
    return jax.ShapeDtypeStruct((*along, *shape[len(axes) :]), dtype)


def _positions(size: tuple[int, int] = (_ROWS, _COLUMNS)) -> list[jax.ShapeDtypeStruct]:
    """Those of the tile, i and j."""
    return [jax.ShapeDtypeStruct(x, jnp.int32) for x in ((size[0], 1), (1, size[1]))]


def _trace(
    who: str, fn: Callable, arrays: Iterable[_Description], arguments: Sequence[jax.ShapeDtypeStruct]
) -> ClosedJaxpr:
    """`fn(arrays, *arguments)` as a jaxpr, which has one result."""
    tiles = [_tile(*x) for x in arrays]

    def one(*given: Any) -> Any:
        result = fn(*given)
        if not isinstance(result, (jax.Array, np.ndarray, np.generic, bool, int, float)):
            raise TypeError(f"{who} must return one array, returns {type(result).__name__}")
        return result

    try:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            traced = jax.make_jaxpr(one)(tiles, *arguments)
    except (jax.errors.TracerBoolConversionError, ValueError) as error:
        if "truth value" not in str(error) and not isinstance(error, jax.errors.TracerBoolConversionError):
            raise
        raise TypeError(
            f"{who} uses `and`, `or`, `not` or `if` on arrays: positions and scores come as tiles,"
            " so use & | ~ and jnp.where"
        ) from None
    except TypeError as error:
        conversions = jax.errors.TracerArrayConversionError, jax.errors.TracerIntegerConversionError
        if not isinstance(error, conversions) and "can be converted to" not in str(error):
            raise
        raise TypeError(
            f"{who} uses NumPy, a list's index or a number's conversion on positions or scores, which are traced tiles:"
            " take jax.numpy, and jnp.asarray(table)[i] to look something up"
        ) from error
    return traced


def _say_unless_linear(who: str, traced: ClosedJaxpr, at: int) -> None:
    """Raises unless a gate is linear in argument `at`, the weight."""
    if reason := nonlinear(traced, at):
        raise ValueError(
            f"{who} must be linear in the weight, like `weight * f(i, j)`, but has {reason}: backends apply gates"
            " before they know the sum that weights are divided by"
        )


@functools.lru_cache(maxsize=512)
def _linear(who: str, signature: Signature, operands: tuple[_Description, ...], dtype: str) -> None:
    """Raises unless gates of that signature are linear in the weight."""
    weight = jax.ShapeDtypeStruct((_ROWS, _COLUMNS), jnp.promote_types(dtype, jnp.float32))
    traced = _trace(who, lambda tiles, *rest: signature.fill(tiles)(*rest), operands, [weight, *_positions()])
    _say_unless_linear(who, traced, len(operands))


@functools.lru_cache(maxsize=512)
def _elementwise(who: str, signature: Signature, operands: tuple[_Description, ...], dtype: str) -> None:
    """Raises unless normalisers of that signature give a few scores the weights that each gets alone, and elsewhere in
    the row."""
    row = 4 * np.random.default_rng(0).standard_normal((1, 6)).astype(jnp.promote_types(dtype, jnp.float32))

    def weights(scores: np.ndarray) -> np.ndarray:
        along = {_ROWS: 1, _COLUMNS: scores.shape[1]}
        tiles = (_tile(*x) for x in operands)
        ones = [jnp.asarray(np.ones([along.get(n, n) for n in x.shape], x.dtype)) for x in tiles]
        return np.broadcast_to(np.asarray(signature.fill(ones)(jnp.asarray(scores))), scores.shape)

    def tried() -> bool:
        alone = np.concatenate([weights(row[:, [n]]) for n in range(row.size)], 1)
        others = weights(row), weights(row[:, ::-1])[:, ::-1]
        return all(np.allclose(x, alone, 1e-3, 1e-3, equal_nan=True) for x in others)

    if not untraced(tried):
        raise ValueError(
            f"{who} says that it is elementwise, but the weight of a score depends on what else is in its row: leave"
            " `elementwise` out, and it gets whole rows"
        )


@functools.lru_cache(maxsize=512)
def _check(
    name: str,
    closure: Closure,
    held: tuple[_Description, ...],
    operands: tuple[_Description, ...],
    told: str | None,
    dtype: str,
) -> tuple[tuple[bool, ...], str | None]:
    """Which of the arrays that it closes over a function uses, and of the indices that it is told."""
    who, computed = f"{name}: {closure.name}", jnp.promote_types(dtype, jnp.float32)
    of_rows = name == "normalizers.function"
    which = [] if told is None else [jax.ShapeDtypeStruct((), jnp.int32)] * 2

    def trace(size: tuple[int, int]) -> tuple[list[jax.ShapeDtypeStruct], ClosedJaxpr]:
        tile = [] if name == "masks.function" else [jax.ShapeDtypeStruct(size, computed)]
        positions = [] if of_rows else [*which, *_positions(size)]
        arguments = [*tile, *positions, *(_tile(*x, size) for x in operands)]
        return arguments, _trace(who, lambda held, *rest: closure.build(held)(*rest), held, arguments)

    arguments, traced = trace((_ROWS, _COLUMNS))
    if any(isinstance(x, Tracer) for x in traced.consts):
        raise TypeError(
            f"{who} uses a traced array that is out of reach when it runs: give it to the function as an operand, made"
            " with jattn.operand(array, axes)"
        )
    (out,) = traced.out_avals
    floating = jnp.issubdtype(out.dtype, jnp.floating)
    if out.dtype != bool if name == "masks.function" else not floating:
        wanted = "bool" if name == "masks.function" else "floating-point numbers"
        raise TypeError(f"{who} returns {out.dtype}, must return {wanted}")
    if any(x.startswith(("random_", "threefry")) for x in primitives(traced.jaxpr)):
        raise ValueError(
            f"{who} draws random numbers, which would be the same in every tile: take"
            " jattn.gates.dropout or jattn.normalizers.gumbel, whose noise is a function of the position"
        )
    _, used = partial_eval.dce_jaxpr(traced.jaxpr, [True])
    held_used, used = used[: len(held)], used[len(held) :]
    tiles = 0 if name == "masks.function" else 1
    told_used = None if told is None else "".join(x for x, y in zip("bh", used[tiles:], strict=False) if y)
    shapes = [x.shape[:2] for x, y in zip(arguments, used, strict=True) if y and len(x.shape) >= 2]
    least = [max((x[n] for x in shapes if x[n] in (_ROWS, _COLUMNS)), default=1) for n in (0, 1)]
    got = (1,) * (2 - len(out.shape)) + tuple(out.shape)
    if of_rows and got != (_ROWS, _COLUMNS):
        raise ValueError(f"{who} must return weights [bt, s] of scores [bt, s], returns {_shown(out.shape)}")
    if len(got) > 2 or any(n not in (want, full) for n, want, full in zip(got, least, (_ROWS, _COLUMNS), strict=True)):
        raise ValueError(
            f"{who} must be elementwise: of a tile [bt, bs] it returns {_shown(out.shape)}, must return {_shown(least)}"
        )
    mixed = "" if of_rows else _across(traced.jaxpr)
    if mixed:
        raise ValueError(
            f"{who} must be elementwise, but {mixed} {'counts' if mixed == 'iota' else 'mixes'} the entries of a tile:"
            " its result would depend on the tile sizes; i and j say where an entry stands"
        )
    if not of_rows and _text(traced, (_ROWS, _COLUMNS)) != _text(trace(_OTHER)[1], _OTHER):
        raise ValueError(
            f"{who} must be elementwise, but computes with the shape of its tile: its result would depend on the tile"
            " sizes; i and j say where an entry stands"
        )
    if name == "gates.function":
        _say_unless_linear(who, traced, len(held))
    return tuple(held_used), told_used


@functools.lru_cache(maxsize=512)
def _check_bucket(who: str, closure: Closure, held: tuple[_Description, ...]) -> None:
    """Raises unless a bucket maps integers to as many."""
    relative = jax.ShapeDtypeStruct((_COLUMNS,), jnp.int32)
    (out,) = _trace(who, lambda held, relative: closure.build(held)(relative), held, [relative]).out_avals
    if out.shape != relative.shape or not jnp.issubdtype(out.dtype, jnp.integer):
        raise TypeError(f"{who} must map integers [n] to as many, returns {out.dtype}{_shown(out.shape)}")


def _shown(shape: Sequence[int]) -> str:
    return str(list(shape)).replace(str(_ROWS), "bt").replace(str(_COLUMNS), "bs")


def _text(traced: ClosedJaxpr, size: tuple[int, int]) -> str:
    """What is computed of a tile, in words that do not say how large it is."""
    text, (rows, columns) = re.sub(r"0x[0-9a-f]+", "", str(traced.jaxpr)), size
    for n, name in ((rows, "t"), (columns, "s"), (rows * columns, "ts")):
        text = re.sub(rf"(?<![.\w]){n}(?![.:\w])", name, text)  # in shapes alone: 2003.0 and 2003:i32 are numbers
    return text + str([x for x in map(np.shape, traced.consts) if set(size) & set(x)])


def _across(jaxpr: Jaxpr) -> str:
    """The first primitive that looks along an axis of the tile, "" if there is none."""
    for equation in jaxpr.eqns:
        if _looks_along(equation):
            return equation.primitive.name
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns") and (mixes := _across(inner)):
                return mixes
    return ""


def _looks_along(equation: JaxprEqn) -> bool:
    """Whether an entry of the result depends on where in the tile it lies, or on others of its row or column."""
    name, params = equation.primitive.name, equation.params
    shape, *others = [_shape(x) for x in equation.invars] or [()]
    result = _shape(equation.outvars[0])
    of_tile = lambda shape, axes: any(shape[x] in (_ROWS, _COLUMNS) for x in axes)
    if name == "iota":  # it counts from 0 in every tile
        return of_tile(params["shape"], [params["dimension"]])
    if name == "dot_general":
        (left, right), _ = params["dimension_numbers"]
        return of_tile(shape, left) or of_tile(others[0], right)
    if name in ("reshape", "transpose"):
        return bool(_lengths(shape)) and bool(_lengths(result)) and _lengths(shape) != _lengths(result)
    if name == "scan":  # over rows or columns, with something that is carried from one to the next
        inner = params["jaxpr"]
        rows = [x for x, y in zip((shape, *others), map(_shape, inner.jaxpr.invars), strict=True) if x != y]
        carries = any(_shape(x) == _shape(y) for x, y in zip(equation.outvars, inner.jaxpr.outvars, strict=True))
        return carries and any(of_tile(x, [0]) for x in rows)
    if name.startswith(("scatter", "dynamic_update_slice")):
        return any(map(_lengths, (shape, *others)))
    if name.startswith(_PARTS):
        if name == "concatenate":
            return any(of_tile(x, [params["dimension"]]) for x in (shape, *others))
        if name == "gather":
            return any(n in (_ROWS, _COLUMNS) and m != n for n, m in zip(shape, params["slice_sizes"], strict=True))
        return _lengths(shape) != _lengths(result)
    if name.startswith(_ACROSS) and name != "reduce_precision":
        axes = next((params[x] for x in ("axes", "axis", "dimension", "dimensions") if x in params), range(len(shape)))
        return of_tile(shape, (axes,) if isinstance(axes, int) else axes)
    return False


def _shape(x: Any) -> tuple[int, ...]:
    """That of a variable or a number of a jaxpr."""
    return tuple(getattr(x.aval, "shape", ()))


def _lengths(shape: Sequence[int]) -> list[int]:
    """The axes of the tile that a shape has, in order."""
    return [n for n in shape if n in (_ROWS, _COLUMNS)]


def primitives(jaxpr: Jaxpr) -> set[str]:
    """Names of the primitives in a jaxpr and in those inside it."""
    names = {equation.primitive.name for equation in jaxpr.eqns}
    inner = [x for equation in jaxpr.eqns for x in jax.tree.leaves(list(equation.params.values()))]
    jaxprs = [getattr(x, "jaxpr", x) for x in inner]
    return names.union(*(primitives(x) for x in jaxprs if hasattr(x, "eqns")))
