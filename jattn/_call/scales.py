"""Keys and values of few bits: key and value times a scale of each row and head, which scores and weights take up.

    q . (scale k) = scale (q . k),   weight (scale v) = (scale weight) v

so nothing is ever made of the stored numbers but a tile of them in the query's working dtype.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jattn._call.problem import Problem
from jattn._terms import FieldValue, Operand, Shaped, repeated, term
from jattn.gates import Gate
from jattn.mods import Mod
from jattn.scores import Dot, General

NARROW = tuple(map(jnp.dtype, ("int8", "float8_e4m3fn", "float8_e5m2")))
"""What keys and values may be where they have scales, beside what they may be in any call."""


@term
class ScaledScore(Mod):
    """score * scale."""

    scale: FieldValue

    def __call__(self, score: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
        del i, j
        return score * self.scale


@term
class ScaledWeight(Gate):
    """weight * scale."""

    scale: FieldValue

    def __call__(self, weight: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
        del i, j
        return weight * self.scale


def checked(scales: Any, key: jax.Array, value: jax.Array, floats: Any) -> tuple[jax.Array, jax.Array]:
    """The scales of keys and values; `floats(x, name)` gives an array of floating-point numbers or raises.

    Raises:
      TypeError: they are no pair of arrays.
      ValueError: they do not go with keys and values.
    """
    if not isinstance(scales, (tuple, list)) or len(scales) != 2:
        raise TypeError(f"scales must be a pair, of the keys [b, s, g] and the values, got {type(scales).__name__}")
    of_keys, of_values = (floats(x, f"scales[{n}]") for n, x in enumerate(scales))
    for n, (scale, array, name) in enumerate(((of_keys, key, "key"), (of_values, value, "value"))):
        if scale.shape != array.shape[:-1]:
            raise ValueError(
                f"scales[{n}] must be {list(array.shape[:-1])}, one for each row and head of {name}"
                f" {list(array.shape)}, got {list(scale.shape)}"
            )
    return of_keys, of_values


def applied(problem: Problem, to_values: bool = True) -> Problem:
    """The problem, gathered, with its scales as a mod before all others and a gate after all others."""
    if problem.scales is None:
        return problem
    of_keys, of_values = (_of_heads(x, problem.sizes["h"]) for x in problem.scales)
    mods, gates, key = problem.mods, problem.gates, problem.key
    if isinstance(problem.score, (Dot, General)):
        mods = (ScaledScore(of_keys), *mods)
    elif isinstance(problem.scales[0], jax.Array):  # no other score of a key times c is c times its score
        key = _times(key, problem.scales[0], problem.query.dtype)
    else:
        key = jax.ShapeDtypeStruct(key.shape, problem.query.dtype)
    if to_values:
        gates = (*gates, ScaledWeight(of_values))
    return dataclasses.replace(problem, key=key, mods=mods, gates=gates, scales=None)


def outlined(problem: Problem) -> Problem:
    """The problem as `applied` makes it, with shapes for its scales."""
    if problem.scales is None:
        return problem
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), problem.scales)
    return applied(dataclasses.replace(problem, scales=shapes))


def whole(problem: Problem) -> Problem:
    """The problem, gathered, with keys and values as they are meant, for who computes all pairs anyway."""
    dtype = problem.query.dtype
    if problem.scales is not None:
        key, value = (_times(x, c, dtype) for x, c in zip((problem.key, problem.value), problem.scales, strict=True))
        return dataclasses.replace(problem, key=key, value=value, scales=None)
    return problem


def cast(problem: Problem) -> Problem:
    """The problem with its stored numbers in the query's dtype."""
    key, value = (x.astype(problem.query.dtype) if x.dtype in NARROW else x for x in (problem.key, problem.value))
    return dataclasses.replace(problem, key=key, value=value)


def _times(array: jax.Array, scale: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return (array.astype(jnp.promote_types(dtype, jnp.float32)) * scale[..., None]).astype(dtype)


def _of_heads(scale: Shaped, h: int) -> Operand:
    """Scales `[b, s, g]` as an operand `[b, h, s]`."""
    if isinstance(scale, jax.ShapeDtypeStruct):
        b, s, _ = scale.shape
        return Operand(jax.ShapeDtypeStruct((b, h, s), scale.dtype), "bhs")  # type: ignore[arg-type]  # a shape only
    turned = jnp.swapaxes(jnp.asarray(scale), 1, 2)
    return Operand(repeated(turned, h // turned.shape[1], 1), "bhs")
