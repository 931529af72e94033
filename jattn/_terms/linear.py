"""Whether a traced function is linear in one of its arguments, and what makes it something else."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal


class _Dependence(enum.Enum):
    """How a value depends on the argument."""

    ZERO = 0  # it is 0 whatever the argument is, and so linear in it as well
    FREE = 1  # it is the same whatever the argument is, and need not be 0
    LINEAR = 2


class _NotLinearError(Exception):
    """Carries the name of the primitive."""


_MOVES = {  # primitives of one input that keep 0 and every sum
    "broadcast_in_dim", "convert_element_type", "copy", "neg", "optimization_barrier", "reduce_precision", "reshape",
    "rev", "slice", "squeeze", "stop_gradient", "transpose",
}  # fmt: skip
_SUMS = {"add", "add_any", "sub"}


def nonlinear(traced: ClosedJaxpr, at: int) -> str | None:
    """The first primitive because of which a function of one result is not linear in argument `at`, None if it is.

    What cannot be seen to be linear without knowing values counts as not linear.
    """
    kinds = [_Dependence.LINEAR if n == at else _Dependence.FREE for n in range(len(traced.jaxpr.invars))]
    try:
        (kind,) = _walk(traced.jaxpr, traced.consts, kinds)
    except _NotLinearError as error:
        return str(error)
    return "a result without it" if kind is _Dependence.FREE else None


def _of_value(value: object) -> _Dependence:
    known = isinstance(value, (int, float, bool, np.ndarray, np.generic))
    return _Dependence.ZERO if known and not np.any(value) else _Dependence.FREE


def _walk(jaxpr: Jaxpr, consts: Sequence[Any], kinds: Sequence[_Dependence]) -> list[_Dependence]:
    kinds_of = dict(zip(jaxpr.constvars, map(_of_value, consts), strict=True))
    kinds_of.update(zip(jaxpr.invars, kinds, strict=True))
    read = lambda x: _of_value(x.val) if isinstance(x, Literal) else kinds_of[x]
    for equation in jaxpr.eqns:
        inputs = [read(x) for x in equation.invars]
        kinds_of.update(zip(equation.outvars, _outputs(equation, inputs), strict=True))
    return [read(x) for x in jaxpr.outvars]


def _inner(equation: JaxprEqn) -> list[tuple[Jaxpr, Sequence[Any]]]:
    """The jaxprs that an equation runs, with their constants."""
    values = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: isinstance(x, (ClosedJaxpr, Jaxpr)))
    closed = [(x.jaxpr, x.consts) for x in values if isinstance(x, ClosedJaxpr)]
    return closed or [(x, ()) for x in values if isinstance(x, Jaxpr)]


def _outputs(equation: JaxprEqn, inputs: list[_Dependence]) -> list[_Dependence]:
    """The kinds of what an equation computes."""
    name, first, rest = equation.primitive.name, inputs[:1], inputs[1:]
    if name in _MOVES:
        return inputs
    if name == "mul" and _Dependence.ZERO in inputs:
        return [_Dependence.ZERO]
    if _Dependence.LINEAR not in inputs:
        return [_Dependence.FREE] * len(equation.outvars)
    linear = {
        **dict.fromkeys(_SUMS, _Dependence.FREE not in inputs),
        "mul": inputs.count(_Dependence.LINEAR) == 1,
        "div": _Dependence.LINEAR not in rest,
        "select_n": _Dependence.LINEAR not in first and _Dependence.FREE not in rest,
    }
    if linear.get(name, False):
        return [_Dependence.LINEAR]
    branches = _inner(equation)
    if name == "cond" and _Dependence.LINEAR not in first:
        outputs = [_walk(*branch, rest) for branch in branches]
        if all(_Dependence.FREE not in x for x in zip(*outputs, strict=True)):
            return [max(x, key=lambda kind: kind.value) for x in zip(*outputs, strict=True)]
    elif branches and name not in ("cond", "scan", "while") and len(branches[0][0].invars) == len(inputs):
        return _walk(*branches[0], inputs)  # `jit` and its like only call what is inside
    raise _NotLinearError(name)
