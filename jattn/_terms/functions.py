"""What users' functions may return: checked once for each, on a tile that is not square, before anything runs.

A function that is not elementwise would give another result for every tile size, silently; and a gate that is not
linear in the weight another one on every backend, be it a function or a class of a user's own.  So would a normaliser
that says it is elementwise and is not: that is tried, on a few numbers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.interpreters import partial_eval

from jattn import gates, masks, mods, normalizers
from jattn._terms import Operand, Origin, Signature, plain, split, working
from jattn._terms.closures import Closure
from jattn._terms.elementwise import COLUMNS, ROWS, across, across_rows, text_of
from jattn._terms.linear import nonlinear
from jattn._terms.untraced import untraced

T = TypeVar("T")
_EFFECTS = {"debug_print", "debug_callback", "io_callback"}
_OTHER = 1013, 2011  # another tile, of which an elementwise function computes the same


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


_Description = tuple[tuple[int, ...], jnp.dtype, str]  # the shape, dtype and axes of an operand


def _describe(operands: Iterable[Operand], dtype: jnp.dtype) -> tuple[_Description, ...]:
    return tuple((x.array.shape, _canonical(working(x.array, dtype)), x.axes) for x in operands)


def _canonical(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype that JAX gives an array: 64 bits are 32 where x64 is off.  Random keys have one of their own."""
    return dtype if jnp.issubdtype(dtype, jax.dtypes.extended) else jax.dtypes.canonicalize_dtype(dtype)


def _tile(
    shape: tuple[int, ...], dtype: jnp.dtype, axes: str, size: tuple[int, int] = (ROWS, COLUMNS)
) -> jax.ShapeDtypeStruct:
    """An operand cut to the tile of one head."""
    along = [n if a in axes else 1 for a, n in zip("ts", size, strict=True)] if set("ts") & set(axes) else []
    return jax.ShapeDtypeStruct((*along, *shape[len(axes) :]), dtype)


def _positions(size: tuple[int, int] = (ROWS, COLUMNS)) -> list[jax.ShapeDtypeStruct]:
    """The positions i and j of the tile, a column and a row, as a function is called with them."""
    return [jax.ShapeDtypeStruct(x, jnp.int32) for x in ((size[0], 1), (1, size[1]))]


def _trace(
    who: str, fn: Callable, arrays: Iterable[_Description], arguments: Sequence[jax.ShapeDtypeStruct]
) -> ClosedJaxpr:
    """`fn(arrays, *arguments)` as a jaxpr, which has one result."""
    tiles = [_tile(*x) for x in arrays]

    def one(*given: Any) -> Any:
        result = plain(fn(*given))
        if not isinstance(result, (jax.Array, np.ndarray, np.generic, bool, int, float)):
            raise TypeError(f"{who} must return one array, returns {type(result).__name__}")
        return result

    try:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            traced = jax.make_jaxpr(one)(tiles, *arguments)
    except (jax.errors.TracerBoolConversionError, ValueError) as error:
        if "truth value" not in str(error) and not isinstance(error, jax.errors.TracerBoolConversionError):
            raise _of_shapes(who, error) or error from None
        raise TypeError(
            f"{who} uses `and`, `or`, `not` or `if` on arrays: positions and scores come as tiles,"
            " so use & | ~ and jnp.where"
        ) from None
    except TypeError as error:
        conversions = (
            jax.errors.TracerArrayConversionError,
            jax.errors.TracerIntegerConversionError,
            jax.errors.ConcretizationTypeError,
        )
        if not isinstance(error, conversions) and "can be converted to" not in str(error):
            raise _of_shapes(who, error) or error from None
        raise TypeError(
            f"{who} uses NumPy, a list's index or a number's conversion on positions or scores, which are traced tiles:"
            " take jax.numpy, and jnp.asarray(table)[i] to look something up"
        ) from error
    if effects := sorted(primitives(traced.jaxpr) & _EFFECTS):
        raise ValueError(
            f"{who} has an effect ({', '.join(effects)}), as jax.debug.print has: tiles are computed inside kernels, as"
            " often as it takes; leave it out, and to look at numbers call the function by itself"
        )
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
    weight = jax.ShapeDtypeStruct((ROWS, COLUMNS), jnp.promote_types(dtype, jnp.float32))
    traced = _trace(who, lambda tiles, *rest: signature.fill(tiles)(*rest), operands, [weight, *_positions()])
    _say_unless_linear(who, traced, len(operands))


@functools.lru_cache(maxsize=512)
def _elementwise(who: str, signature: Signature, operands: tuple[_Description, ...], dtype: str) -> None:
    """Raises unless normalisers of that signature give a few scores the weights that each gets alone, and elsewhere in
    the row."""
    row = 4 * np.random.default_rng(0).standard_normal((1, 6)).astype(jnp.promote_types(dtype, jnp.float32))

    def weights(scores: np.ndarray) -> np.ndarray:
        along = {ROWS: 1, COLUMNS: scores.shape[1]}
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

    arguments, traced = trace((ROWS, COLUMNS))
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
    least = [max((x[n] for x in shapes if x[n] in (ROWS, COLUMNS)), default=1) for n in (0, 1)]
    got = (1,) * (2 - len(out.shape)) + tuple(out.shape)
    if of_rows and got != (ROWS, COLUMNS):
        raise ValueError(f"{who} must return weights [bt, s] of scores [bt, s], returns {_shown(out.shape)}")
    if len(got) > 2 or any(n not in (want, full) for n, want, full in zip(got, least, (ROWS, COLUMNS), strict=True)):
        raise ValueError(
            f"{who} must be elementwise: of a tile [bt, bs] it returns {_shown(out.shape)}, must return {_shown(least)}"
        )
    if not of_rows:
        _say_unless_alone(who, traced, lambda: trace(_OTHER)[1], "i and j say where an entry stands")
    elif mixed := across_rows(traced.jaxpr):
        raise ValueError(
            f"{who} must look at each row of scores [bt, s] by itself, but {mixed} mixes rows: its result would depend"
            " on the tile sizes; give it the axis of the keys, as in scores.sum(axis=-1, keepdims=True)"
        )
    if name == "gates.function":
        _say_unless_linear(who, traced, len(held))
    return tuple(held_used), told_used


def _say_unless_alone(who: str, traced: ClosedJaxpr, other: Callable[[], ClosedJaxpr], way_out: str) -> None:
    """Raises unless each entry of a tile is computed of itself alone; `other` traces the same of another tile."""
    if mixed := across(traced.jaxpr):
        raise ValueError(
            f"{who} must be elementwise, but {mixed} {'counts' if mixed == 'iota' else 'mixes'} the entries of a tile:"
            f" its result would depend on the tile sizes; {way_out}"
        )
    if text_of(traced, (ROWS, COLUMNS)) != text_of(other(), _OTHER):
        raise ValueError(
            f"{who} must be elementwise, but computes with the shape of its tile: its result would depend on the tile"
            f" sizes; {way_out}"
        )


@functools.lru_cache(maxsize=512)
def _check_bucket(who: str, closure: Closure, held: tuple[_Description, ...]) -> None:
    """Raises unless a bucket maps integers to as many, each by itself."""

    def trace(n: int) -> ClosedJaxpr:
        relative = jax.ShapeDtypeStruct((n,), jnp.int32)
        return _trace(who, lambda held, relative: closure.build(held)(relative), held, [relative])

    traced = trace(COLUMNS)
    (out,) = traced.out_avals
    if out.shape != (COLUMNS,) or not jnp.issubdtype(out.dtype, jnp.integer):
        raise TypeError(f"{who} must map integers [n] to as many, returns {out.dtype}{_shown(out.shape)}")
    _say_unless_alone(who, traced, lambda: trace(_OTHER[1]), "it maps each j - i by itself")


def _of_shapes(who: str, error: Exception) -> ValueError | None:
    """What to raise where shapes do not go with a tile's; None where the error does not speak of one."""
    words = _named(str(error)).rstrip(".")
    if words == str(error).rstrip("."):
        return None
    return ValueError(
        f"{who} does not go with a tile [bt, bs]: {words}. An array with axes of the call is given to the function as"
        " an operand, made with jattn.operand(array, axes), and arrives cut to the tile"
    )


def _shown(shape: Sequence[int]) -> str:
    return _named(str(list(shape)))


def _named(words: str) -> str:
    """Words in which the tile's lengths have their names."""
    return words.replace(str(ROWS), "bt").replace(str(COLUMNS), "bs")


def primitives(jaxpr: Jaxpr) -> set[str]:
    """Names of the primitives in a jaxpr and in those inside it."""
    names = {equation.primitive.name for equation in jaxpr.eqns}
    inner = [x for equation in jaxpr.eqns for x in jax.tree.leaves(list(equation.params.values()))]
    jaxprs = [getattr(x, "jaxpr", x) for x in inner]
    return names.union(*(primitives(x) for x in jaxprs if hasattr(x, "eqns")))
