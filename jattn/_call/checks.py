"""Every error that bad input gets, raised before anything is traced: the argument, what it was, what was expected,
the way out."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jattn import _terms, masks, mods, normalizers, scores
from jattn import gates as gates_
from jattn._call import pages as pages_
from jattn._call import places
from jattn._call import scales as scales_
from jattn._call.problem import Problem
from jattn._terms import AXES, Offsets, Operand, Origin, Shaped, Term, broadcast_operand, functions, is_whole, plain
from jattn._terms import positions as integers

T = TypeVar("T")
_HERE = Origin()
_DTYPES = tuple(map(jnp.dtype, ("float32", "bfloat16", "float16", "float64")))


def array(x: ArrayLike | jax.ShapeDtypeStruct, name: str, narrow: bool = False) -> jax.Array:
    """`x` as a floating-point array; a `jax.ShapeDtypeStruct` passes for one, of which no more is asked.

    `narrow`: whether it may be of few bits, as keys and values with scales are.
    """
    x = plain(x)
    if not isinstance(x, (jax.Array, np.ndarray, jax.ShapeDtypeStruct)):
        try:
            x = jnp.asarray(x)
        except (TypeError, ValueError):
            raise TypeError(f"{name} must be an array, got {type(x).__name__}") from None
    if x.dtype not in _DTYPES and not (narrow and x.dtype in scales_.NARROW):
        if x.dtype in scales_.NARROW and name in ("key", "value"):
            raise TypeError(f"{name} must have scales where it is {x.dtype}: give scales=(of keys, of values)")
        raise TypeError(f"{name} must be float32, bfloat16, float16 or float64, got {x.dtype}; cast it first")
    return x if isinstance(x, jax.ShapeDtypeStruct) else jnp.asarray(x)  # type: ignore[return-value]


def shapes(query: Shaped, key: Shaped, value: Shaped, equal_width: bool = True) -> None:
    """Raises unless the three go together."""
    q, k, v = query.shape, key.shape, value.shape
    got = f"got query {list(q)}, key {list(k)}, value {list(v)}"
    if not (len(q) == len(k) == len(v) and len(q) in (3, 4)):
        raise ValueError(
            f"query, key and value must be [b, t, h, d], [b, s, g, d], [b, s, g, e], or all without b, {got};"
            " use jax.vmap for more batch axes"
        )
    if 0 in (*q[-2:], *k[-2:], *v[-2:]):
        raise ValueError(f"heads and widths must be >= 1, {got}")
    if len(q) == 4 and not q[0] == k[0] == v[0]:
        raise ValueError(f"query, key and value must have the same batch size b, {got}")
    hint = ""
    if q[-3] == k[-3] == v[-3] and (k[-2] == v[-2]):
        hint = "; these look like [b, h, t, d]: jattn takes [b, t, h, d], so swap axes -3 and -2 with jnp.swapaxes"
    if k[-3:-1] != v[-3:-1]:
        raise ValueError(f"key and value must have the same length s and the same heads g, {got}")
    if equal_width and q[-1] != k[-1]:
        raise ValueError(f"query and key must have the same width d, {got}")
    if q[-2] % k[-2]:
        raise ValueError(
            f"the query's heads h = {q[-2]} must be a multiple of the key's heads g = {k[-2]}, {got}{hint}"
        )


def problem(
    query: ArrayLike | jax.ShapeDtypeStruct,
    key: ArrayLike | jax.ShapeDtypeStruct,
    value: ArrayLike | jax.ShapeDtypeStruct,
    *,
    score: scores.Score,
    normalizer: normalizers.Normalizer,
    mask: masks.Mask | ArrayLike | None = None,
    mods_: mods.Mod | Sequence[mods.Mod] = (),
    gates: gates_.Gate | Sequence[gates_.Gate] = (),
    bias: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    dropout: gates_.Gate | None = None,
    return_lse: bool = False,
    precision: jax.lax.Precision | str | None = None,
    positions: Mapping[str, ArrayLike] | ArrayLike | None = None,
    pages: ArrayLike | jax.ShapeDtypeStruct | None = None,
    scales: Sequence[ArrayLike | jax.ShapeDtypeStruct] | None = None,
    shares: int = 1,
) -> Problem:
    """The checked problem, with a batch axis.

    `shares`: how many times the call's keys an operand with queries has, where these are a device's share.
    """
    narrow = scales is not None
    query, key, value = array(query, "query"), array(key, "key", narrow), array(value, "value", narrow)
    factors = None if scales is None else scales_.checked(scales, key, value, array)
    score = _instance(score, scores.Score, "score", "scores.dot()")
    normalizer = _instance(normalizer, normalizers.Normalizer, "normalizer", "normalizers.softmax()")
    table = None if pages is None else pages_.checked(pages, query, key, value)
    seen = (key, value) if table is None else (pages_.flat(key, table), pages_.flat(value, table))
    shapes(query, *seen, equal_width=not isinstance(score, (scores.General, scores.Concat, scores.Additive)))
    sizes = dict(zip("bth", (1, *query.shape)[-4:-1], strict=True)) | {"s": seen[0].shape[-3]}
    if query.ndim == 3:
        query = _in_batch(query)
        if table is None:
            key, value = _in_batch(key), _in_batch(value)
            factors = None if factors is None else (_in_batch(factors[0]), _in_batch(factors[1]))
        else:
            table = _in_batch(table)

    if isinstance(mask, (list, tuple)) and any(isinstance(x, masks.Mask) for x in mask):
        raise TypeError("mask must be one mask, got a sequence of them: join them with & or |")
    mods_ = _sequence(mods_, mods.Mod, "mods", "mods.softcap(30.0)")
    gates = _sequence(gates, gates_.Gate, "gates", "gates.dropout(0.1, seed)")
    if bias is not None:
        if isinstance(bias, Term):
            raise TypeError("bias must be an array: give a mod as mods=(...,)")
        mods_ = (mods.Bias(broadcast_operand(array(bias, "bias"), sizes, "bias", shares)), *mods_)
    if dropout is not None:
        gates = (*gates, _instance(dropout, gates_.Gate, "dropout", "gates.dropout(0.1, seed)"))
    origin = places.of_device(_origin(positions, sizes), sizes)
    if mask is not None:
        mask = place(mask if isinstance(mask, masks.Mask) else _mask_array(mask), sizes, origin, shares)
    sink = None
    if sinks is not None:
        logits = array(sinks, "sinks")
        if not normalizer.is_softmax:
            raise ValueError(f"sinks take part in a softmax's denominator: normalizer {_name(normalizer)} has none")
        if logits.shape != (sizes["h"],):
            raise ValueError(f"sinks must be [h] = [{sizes['h']}], got shape {list(logits.shape)}")
        sink = Operand(logits, "h")
    if not isinstance(return_lse, (bool, np.bool_)):
        raise TypeError(f"return_lse must be True or False, known while tracing, got {_short(return_lse)}")
    if return_lse and not normalizer.is_softmax:
        raise ValueError(f"return_lse needs normalizer softmax, got {_name(normalizer)}: it has no denominator to log")
    try:
        precision = precision.lower() if isinstance(precision, str) else precision
        precision = None if precision is None else jax.lax.Precision(precision)
    except (TypeError, ValueError):
        raise ValueError(f"precision must be a jax.lax.Precision or its name, got {precision!r}") from None
    score, normalizer, mask, mods_, gates = _adopted((score, normalizer, mask, mods_, gates))
    whole = Problem(query, key, value, score, normalizer, mask, mods_, gates, sink, precision, origin, table, factors)
    _operands(whole, sizes, shares)
    _score(score, query.shape[-1], key.shape[-1])
    mask, mods_, gates, normalizer = functions.checked((mask, mods_, gates, normalizer), query.dtype)
    whole = dataclasses.replace(whole, mask=mask, mods=mods_, gates=gates, normalizer=normalizer)
    places.check(whole)
    return _narrowed(whole)


def _in_batch(x: jax.Array) -> jax.Array:
    """The array, or the shape of one, with a batch axis."""
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((1, *x.shape), x.dtype)  # type: ignore[return-value]
    return x[None]


def _adopted(terms: T) -> T:
    """The terms, those of a user's own class too: plain arrays in them are operands without axes, which reach them
    whole."""
    is_one = lambda x: isinstance(x, Operand) or plain(x) is not x
    adopt = lambda x: Operand(x, "") if isinstance(x, (jax.Array, np.ndarray)) else x
    return jax.tree.map(lambda x: adopt(plain(x)), terms, is_leaf=is_one)


def _narrowed(whole: Problem) -> Problem:
    """The problem with no operand wider than its query is computed in: float64 slopes do not widen a float32 loop."""

    def narrowed(x: Operand) -> Operand:
        if jnp.issubdtype(x.array.dtype, jnp.complexfloating):
            raise TypeError(f"operands must be real numbers, got {x.array.dtype}{list(x.array.shape)}")
        if jnp.issubdtype(x.array.dtype, jax.dtypes.extended):  # a random key has no width to narrow
            return x
        dtype = jnp.dtype(_terms.working(x.array, whole.query.dtype))
        if x.array.dtype.itemsize <= dtype.itemsize:
            return x
        shape_only = isinstance(x.array, jax.ShapeDtypeStruct)
        return Operand(jax.ShapeDtypeStruct(x.array.shape, dtype) if shape_only else x.array.astype(dtype), x.axes)

    parts = {name: getattr(whole, name) for name in ("score", "normalizer", "mask", "mods", "gates", "sinks")}
    is_operand = lambda x: isinstance(x, Operand)
    parts = jax.tree.map(lambda x: narrowed(x) if is_operand(x) else x, parts, is_leaf=is_operand)
    scales = None if whole.scales is None else tuple(narrowed(Operand(x, "")).array for x in whole.scales)
    return dataclasses.replace(whole, **parts, scales=scales)


def blocks(value: object) -> tuple[int, int] | None:
    """An override of the tile sizes."""
    if value is None:
        return None
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if len(pair) != 2 or not all(is_whole(x) and x >= 1 for x in pair):
        raise ValueError(f"blocks must be (query rows, key rows) of a tile, two ints >= 1, got {value!r}")
    return int(pair[0]), int(pair[1])


def _name(x: object) -> str:
    return type(x).__name__.lower()


def _instance(x: object, kind: type[T], name: str, example: str) -> T:
    if isinstance(x, kind):
        return x
    raise TypeError(f"{name} must be made like jattn.{example}, got {_short(x)}{' (call it)' if _makes(x) else ''}")


def _makes(x: object) -> bool:
    """Whether it is one of the library's functions that make terms, which was not called."""
    made_by = scores, normalizers, gates_, mods, masks
    return callable(x) and not isinstance(x, Term) and inspect.getmodule(x) in made_by


def _short(x: object) -> str:
    shown = repr(x)
    return shown if len(shown) <= 60 else type(x).__name__


def _sequence(value: object, kind: type[T], name: str, example: str) -> tuple[T, ...]:
    if isinstance(value, kind):
        return (value,)
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{name} must be a tuple, like (jattn.{example},), got {_short(value)}")
    return tuple(_instance(x, kind, f"{name}[{n}]", example) for n, x in enumerate(value))


def _mask_array(mask: object) -> masks.Mask:
    mask = plain(mask)
    if _makes(mask):
        raise TypeError("mask must be a mask, got the function that makes one: call it, like jattn.masks.causal()")
    if callable(mask) and not isinstance(mask, Term):
        raise TypeError("mask must be a mask or a boolean array, got a function: wrap it in jattn.masks.function")
    if not isinstance(mask, (jax.Array, np.ndarray, list, tuple)):
        raise TypeError(f"mask must be made like jattn.masks.causal(), or a boolean array, got {_short(mask)}")
    return masks.dense(mask)


def _origin(given: Mapping[str, ArrayLike] | ArrayLike | None, sizes: dict[str, int]) -> Origin:
    """Where a call stands, as `positions` says."""
    if given is None:
        return _HERE
    named = isinstance(given, Mapping)
    firsts = dict(given) if named else {"t": given}
    if not set(firsts) <= set(AXES):
        raise ValueError(f'positions must name axes of "bhts", got {", ".join(map(repr, firsts))}')
    name = lambda axis: f"positions[{axis!r}]" if named else "positions"
    b, h = (integers.integer(firsts[a], name(a)) if a in firsts else None for a in "bh")
    for axis, value in (("b", b), ("h", h)):
        if isinstance(value, int) and value < 0:
            raise ValueError(f"{name(axis)} must be >= 0, got {value}")
    t, s = (integers.lengths(firsts.get(a, 0), name(a)) for a in "ts")
    for axis, value in (("t", t), ("s", s)):
        if isinstance(value, Operand) and value.axes and value.array.shape != (sizes["b"],):
            raise ValueError(
                f"{name(axis)} must be an integer, or integers [b] = [{sizes['b']}], got shape"
                f" {list(value.array.shape)}: where the first {'query' if axis == 't' else 'key'} stands"
            )
    for axis, value in (("t", t), ("s", s)):
        length = sizes[axis] if isinstance(sizes[axis], int) else 1
        if isinstance(value, int) and not 0 <= value <= integers.LAST - max(length - 1, 0):
            raise ValueError(
                f"{name(axis)} must leave positions within 0 and 2^30, got {value} and {axis} = {sizes[axis]}"
            )
    together = firsts.get("t", 0) is firsts.get("s", 0)
    return Origin(0 if b is None else b, h, Offsets(0 if together else _difference(t, s), s))


def _difference(t: int | Operand, s: int | Operand) -> int | Operand:
    if isinstance(t, int) and isinstance(s, int):
        return t - s
    value = lambda x: x.array if isinstance(x, Operand) else np.int32(x)
    return Operand(value(t) - value(s), max(x.axes for x in (t, s) if isinstance(x, Operand)))


def place(mask: masks.Mask, sizes: dict[str, int], origin: Origin = _HERE, shares: int = 1) -> masks.Mask:
    """The mask with its boolean arrays as operands, its other sizes checked as far as it is known where the call
    stands."""
    known = lambda *numbers: sum(numbers) if all(isinstance(x, int) for x in numbers) else 0
    lead, first, head = origin.offsets.lead, origin.offsets.first, known(origin.first_head)
    i, j = known(lead, first), known(first)
    t, s, heads = i + sizes["t"], j + sizes["s"], head + sizes["h"]

    def placed(x: object) -> object:
        if isinstance(x, masks.Unplaced):
            return masks.Dense(broadcast_operand(x.array, sizes, "mask", shares))
        if isinstance(x, masks.Blocks):
            shape, reach = x.layout.shape, [n * x.block for n in x.layout.shape[-2:]]
            of_heads = len(shape) == 3 and (shape[0] != heads if origin.h is None else shape[0] < heads)
            short = any(isinstance(n, int) and x < n for x, n in zip(reach, (t, s), strict=True))
            if short or min(i, j) < 0 or of_heads:
                counted = "" if origin == _HERE else f", counted from positions {i} and {j} and from head {head}"
                raise ValueError(
                    f"masks.blocks: layout {list(shape)} of block {x.block} must cover t = {t}, s = {s} and, with"
                    f" three axes, have h = {heads} first{counted}"
                )
        return x

    return jax.tree.map(placed, mask, is_leaf=lambda x: isinstance(x, (masks.Unplaced, masks.Blocks, Operand)))


def _operands(whole: Problem, sizes: dict[str, int], shares: int) -> None:
    """Raises unless every operand of every term has the sizes that its axes say."""
    for name in ("score", "normalizer", "mask", "mods", "gates"):
        for x in jax.tree.leaves(getattr(whole, name), is_leaf=lambda x: isinstance(x, Operand)):
            if not isinstance(x, Operand):
                continue
            whole_keys = {**sizes, "s": sizes["s"] * shares} if "t" in x.axes else sizes
            if list(x.array.shape[: len(x.axes)]) != [whole_keys[a] for a in x.axes]:
                named = ", ".join(f"{a} = {whole_keys[a]}" for a in AXES if a in x.axes)
                raise ValueError(
                    f'{name}: an operand with axes "{x.axes}" must start with {named}, got shape {list(x.array.shape)}'
                )


def _score(score: scores.Score, d: int, key_width: int) -> None:
    """Raises unless the score's weights fit the widths."""
    wants = {
        scores.General: {"w": (d, key_width)},
        scores.Concat: {"w_q": (d,), "w_k": (key_width,)},
        scores.Additive: {"w_q": (d, None), "w_k": (key_width, None), "v": (None,)},
    }.get(type(score), {})
    hidden = set()
    for name, want in wants.items():
        weight = getattr(score, name)
        shape = weight.array.shape[len(weight.axes) :]
        hidden |= {n for n, size in zip(shape, want, strict=True) if size is None}
        if any(size not in (None, n) for n, size in zip(shape, want, strict=True)):
            shown = ", ".join("m" if n is None else str(n) for n in want)
            raise ValueError(
                f"scores.{_name(score)}: {name} must be [{shown}], or [h, {shown}], got {list(weight.array.shape)}"
            )
    if 0 in hidden:
        raise ValueError("scores.additive: w_q, w_k and v must have a hidden unit, m >= 1, got m = 0")
    if len(hidden) > 1:
        raise ValueError(f"scores.additive: w_q, w_k and v must agree in their last axis m, got {sorted(hidden)}")
