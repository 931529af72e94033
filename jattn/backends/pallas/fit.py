"""Which terms a kernel can evaluate inside a tile."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jattn import gates, masks, mods
from jattn._call.problem import Problem
from jattn._terms import Operand
from jattn._terms.closures import Closure
from jattn._terms.functions import primitives
from jattn.backends.pallas.terms import packed, parts_of, words_of
from jattn.mods import Relative

_MOST_WORDS = 2**16  # of a packed layout: a quarter of a TPU's scalar memory


def unfit_terms(problem: Problem) -> str | None:
    """Why a kernel cannot evaluate the terms of a problem, None if it can; a clause whose subject is the kernel."""
    terms = problem.mods, problem.mask, problem.gates
    for x in parts_of(terms, masks.Blocks):
        if words_of(x.layout.array) > _MOST_WORDS:
            return f"takes block layouts of up to {32 * _MOST_WORDS} entries, not {x.layout.array.size}"
    if parts_of(packed(problem.mask), masks.Blocks):
        return "takes masks.blocks combined with & | ~ alone, not inside another mask"
    tables = [m.table for m in problem.mods if isinstance(m, Relative)]
    for x in parts_of(terms, Operand):
        if x.array.ndim > len(x.axes) and not any(x is y for y in tables):
            return f"takes operands with axes b h t s alone, not {list(x.array.shape)} with axes {x.axes!r}"
        if jax.dtypes.canonicalize_dtype(x.array.dtype) in (jnp.int64, jnp.uint64):  # x64: two ids could become one
            return f"takes integers of 32 bits, not {x.array.dtype}"
    for kind, first in ((mods.Function, (_TILE,)), (masks.Function, ()), (gates.Function, (_TILE,))):
        for x in parts_of(terms, kind):
            operands = tuple((o.array.dtype, o.axes) for o in (*x.held, *x.operands))
            reason = _unfit_function(x.closure, len(x.held), first, operands)
            if reason is not None:
                return reason
    return None


_TILE = (128, 128)
_LOOK_UPS = {"gather", "scatter", "scatter-add", "sort", "dynamic_slice", "dot_general", "while", "scan", "cumsum"}


@functools.lru_cache(maxsize=256)
def _unfit_function(
    closure: Closure, held: int, first: tuple[tuple[int, int], ...], operands: tuple[tuple[jnp.dtype, str], ...]
) -> str | None:
    wide = lambda dtype: jnp.float32 if jnp.issubdtype(dtype, jnp.floating) else dtype
    along = lambda axes: tuple(n if a in axes else 1 for a, n in zip("ts", _TILE, strict=True))
    shape = lambda axes: along(axes) if set("ts") & set(axes) else ()
    arguments = [jax.ShapeDtypeStruct(x, jnp.float32) for x in first]
    arguments += [jax.ShapeDtypeStruct(x, jnp.int32) for x in ((_TILE[0], 1), (1, _TILE[1]))]
    tiles = [jax.ShapeDtypeStruct(shape(axes), wide(dtype)) for dtype, axes in operands]
    traced = jax.make_jaxpr(lambda held, *rest: closure.build(held)(*rest))(tiles[:held], *arguments, *tiles[held:])
    if any(jnp.ndim(x) for x in traced.consts):
        return "takes functions without arrays of their own: give the array as a jattn.operand"
    look_ups = primitives(traced.jaxpr) & _LOOK_UPS
    return f"takes elementwise functions, not {' or '.join(sorted(look_ups))}" if look_ups else None
