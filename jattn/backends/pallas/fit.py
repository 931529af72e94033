"""What no family of Pallas kernels runs, and how the terms of a problem are asked one after the other.

Each family adds what its own machine forces: a `refuses.py` beside its record.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jattn import gates, masks, mods
from jattn._call.problem import Problem
from jattn._call.scales import NARROW
from jattn._terms import Operand
from jattn.backends.pallas.terms import packed, parts_of
from jattn.mods import Relative, RelativeContent
from jattn.scores import Additive

UserFunction = masks.Function | mods.Function | gates.Function


def unfit_kind(problem: Problem) -> str | None:
    """Why no kernel computes such weights, None if one may; a clause whose subject is the backend."""
    if not problem.normalizer.is_softmax:
        return f"has no kernel for normalizer {type(problem.normalizer).__name__.lower()}"
    if isinstance(problem.score, Additive):
        return "has no kernel for score additive, which is not a product"
    return None


def widened(problem: Problem) -> Problem:
    """The problem as kernels multiply it: keys and values of few bits are cast to the query's dtype."""
    wide = lambda x: jax.ShapeDtypeStruct(x.shape, problem.query.dtype) if x.dtype in NARROW else x
    return dataclasses.replace(problem, key=wide(problem.key), value=wide(problem.value))


def unfit_dtypes(problem: Problem, taken: tuple[str, ...]) -> str | None:
    """Whether queries, keys and values have other dtypes than those that the kernels take; likewise a clause."""
    others = {x.dtype.name for x in (problem.query, problem.key, problem.value)} - {*taken}
    return f"takes {' and '.join(taken)}, not {' and '.join(sorted(others))}" if others else None


def unfit_terms(
    problem: Problem, operand: Callable[[Operand], str | None], function: Callable[[UserFunction, int], str | None]
) -> str | None:
    """Why a kernel cannot evaluate the terms of a problem, None if it can; a clause whose subject is the kernel.

    Args:
      problem: of which masks, mods and gates are looked at.
      operand: why the kernels do not take an operand, other than a table of relative positions.
      function: why they do not evaluate a user's function, which comes with how many tiles are its first arguments.
    """
    terms = problem.mods, problem.mask, problem.gates
    if parts_of(packed(problem.mask), masks.Blocks):
        return "takes masks.blocks combined with & | ~ alone, not inside another mask"
    if parts_of(problem.mods, RelativeContent):
        return "has no kernel for mods.relative_content, a product of its own for each tile"
    tables = [m.table for m in problem.mods if isinstance(m, Relative)]
    for x in parts_of(terms, Operand):
        reason = None if any(x is y for y in tables) else operand(x)
        if reason is not None:
            return reason
        if jax.dtypes.canonicalize_dtype(x.array.dtype) in (jnp.int64, jnp.uint64):  # x64: two ids could become one
            return f"takes integers of 32 bits, not {x.array.dtype}"
    for kind, tiles in ((mods.Function, 1), (masks.Function, 0), (gates.Function, 1)):
        for x in parts_of(terms, kind):
            reason = function(x, tiles)
            if reason is not None:
                return reason
    return None
