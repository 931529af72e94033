"""All that a backend computes of one case: values, lse, every gradient, and a derivative in forward mode."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params

import jattn
from jattn import normalizers
from tests.tolerances import TOLERANCES, Tolerance, assert_close

QUICK = {"xla_backend_optimization_level": 0}  # of the machine code alone: compiling is what these tests spend time on


class Result(NamedTuple):
    out: Any
    lse: Any  # None where the normaliser has none
    gradients: list[Any]  # of every floating array, in the order of the leaves
    names: list[str]
    slope: Any  # of sum(cotangents * result) along the tangents
    slope_from_gradients: Any


def _floating(x: Any) -> bool:
    return isinstance(x, (jax.Array, np.ndarray)) and jnp.issubdtype(x.dtype, jnp.floating)


def widen(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64) if _floating(x) else x, tree)


def as_function(inputs: Any, **fixed: Any):
    """attention as a function of the floating arrays of `inputs = (arrays, options)`; and those arrays and their names."""
    paths, tree = jax.tree_util.tree_flatten_with_path(inputs)
    learn = [_floating(x) for _, x in paths]
    softmax = inputs[1].get("normalizer", normalizers.softmax()).is_softmax

    def fn(*arrays):
        rest = iter(arrays)
        (q, k, v), options = jax.tree.unflatten(
            tree, [next(rest) if y else x for (_, x), y in zip(paths, learn, strict=True)]
        )
        return jattn.attention(q, k, v, **options, **fixed, return_lse=softmax)

    chosen = [(path, x) for (path, x), y in zip(paths, learn, strict=True) if y]
    return fn, [x for _, x in chosen], [jax.tree_util.keystr(path) for path, _ in chosen]


def equations(jaxpr: Any, name: str | None = None) -> Iterator[Any]:
    """Those of a primitive or, without a name, of all, in a jaxpr and in those inside it."""
    for equation in jaxpr.eqns:
        if name in (None, equation.primitive.name):
            yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner, name)


def _normal(like: Any, seed: int) -> Any:
    leaves, tree = jax.tree.flatten(like)
    random = np.random.default_rng(seed)
    return jax.tree.unflatten(tree, [jnp.asarray(random.standard_normal(x.shape), x.dtype) for x in leaves])


def _inner(a: Any, b: Any) -> Any:
    return sum(jnp.sum(x * y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def evaluate(
    inputs: Any, implementation: Any, blocks: Any = None, like: Any = None, forward_mode: bool = True
) -> Result:
    """`like`: inputs of another dtype whose cotangents to use, cast."""
    fn, arrays, names = as_function(inputs, implementation=implementation, blocks=blocks)
    shapes = jax.eval_shape(fn, *arrays)
    if like is None:
        cotangents = _normal(shapes, 1)
    else:
        other, others, _ = as_function(like, implementation=implementation)
        cotangents = jax.tree.map(lambda x, y: x.astype(y.dtype), _normal(jax.eval_shape(other, *others), 1), shapes)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def everything(arrays, cotangents, tangents):
        result, push = jax.linearize(fn, *arrays)
        gradients = jax.linear_transpose(push, *arrays)(cotangents)
        slopes = (_inner(cotangents, push(*tangents)), _inner(gradients, tangents)) if forward_mode else (None, None)
        return result, gradients, slopes

    result, gradients, slopes = everything(tuple(arrays), cotangents, tuple(_normal(arrays, 2)))
    out, lse = result if isinstance(result, tuple) else (result, None)
    return Result(out, lse, list(gradients), names, *slopes)


def assert_agree(
    got: Result, wanted: Result, dtype: str, gradients: int | None = None, lse: str | None = None, slack: float = 1.0
) -> None:
    """Raises unless values, lse (float32 or wider) and the first or all gradients are within the dtype's tolerances.

    `lse`: a dtype whose tolerance the lse gets, in the place of its own.  `slack`: how many times the tolerances.
    """
    tolerance = Tolerance(*(slack * x for x in TOLERANCES[dtype]))
    assert_close(got.out, wanted.out, tolerance.value, "out")
    if wanted.lse is not None:
        assert_close(got.lse, wanted.lse, slack * TOLERANCES[lse or got.lse.dtype.name].value, "lse")
    every = zip(got.names, got.gradients, wanted.gradients, strict=True)
    for name, x, y in itertools.islice(every, gradients):
        assert_close(x, y, tolerance.gradient, f"gradient of {name}")


def check_dtype(inputs, backend, dtype, blocks=None, gradients=None, lse=None, slack=1.0):
    """Against the reference in float64, from the same rounded arrays."""
    with jax.enable_x64(False):
        got = evaluate(inputs, backend, blocks, forward_mode=False)
        assert got.out.dtype == dtype
        assert got.lse is None or got.lse.dtype == jnp.float32
        assert all(x.dtype == dtype for x in got.gradients[:3])
        # a piece may hold wider ones
        chex.assert_trees_all_equal_shapes_and_dtypes(got.gradients, as_function(inputs, implementation=backend)[1])
    with jax.enable_x64(True):
        wanted = evaluate(widen(inputs), "reference", like=inputs, forward_mode=False)
    assert_agree(got, wanted, dtype, gradients, lse, slack)
