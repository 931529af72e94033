"""What the TPU kernels cannot run."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jattn_kernels import chips

from jattn import masks
from jattn._call.problem import Problem
from jattn._call.targets import Target
from jattn._terms import Operand
from jattn._terms.closures import Closure
from jattn._terms.functions import primitives
from jattn.backends.pallas.fit import UserFunction, unfit_dtypes, unfit_kind, unfit_terms, widened
from jattn.backends.pallas.terms import parts_of, words_of
from jattn.mods import Relative

LONGEST = 2**24  # queries or keys; up to that, tiles can be so large that scalar memory says which are visited
_PER_POSITION = 16  # bytes for each relative position: a float32 of the table and one of its gradient, twice each
_MOST_WORDS = 2**16  # a packed layout of so many words takes a quarter of scalar memory
_TILE = (128, 128)
_LOOK_UPS = {"gather", "scatter", "scatter-add", "sort", "dynamic_slice", "dot_general", "while", "scan", "cumsum"}


def unfit(problem: Problem, target: Target) -> str | None:
    """Why the kernels cannot run a problem there, None if they can; a clause whose subject is the backend."""
    return (
        _unfit_target(target)
        or unfit_kind(problem)
        or unfit_dtypes(widened(problem), ("float32", "bfloat16"))
        or _too_long(problem, target)
        or _too_many_words(problem)
        or unfit_terms(problem, _unfit_operand, _unfit_function)
    )


def _unfit_target(target: Target) -> str | None:
    return None if target.tpu else f"runs on TPU, not {target.platform}; JATTN_INTERPRET=1 interprets it, slowly"


def _too_long(problem: Problem, target: Target) -> str | None:
    t, s = problem.sizes["t"], problem.sizes["s"]
    if max(t, s) > LONGEST:
        return f"takes up to {LONGEST} queries and keys, not {max(t, s)}: scalar memory holds no more tiles"
    most = (chips.tpu(target.chip) or chips.SMALLEST_TPU).granted // 3 // _PER_POSITION
    if any(isinstance(m, Relative) for m in problem.mods) and t + s > most:
        return (
            f"takes relative positions of up to {most} queries and keys together, not {t + s}: fast memory has them all"
        )
    return None


def _too_many_words(problem: Problem) -> str | None:
    for x in parts_of((problem.mods, problem.mask, problem.gates), masks.Blocks):
        if words_of(x.layout.array) > _MOST_WORDS:
            return f"takes block layouts of up to {32 * _MOST_WORDS} entries, not {x.layout.array.size}"
    return None


def _unfit_operand(x: Operand) -> str | None:
    if x.array.ndim > len(x.axes):
        return f"takes operands with axes b h t s alone, not {list(x.array.shape)} with axes {x.axes!r}"
    return None


def _unfit_function(x: UserFunction, tiles: int) -> str | None:
    operands = tuple((o.array.dtype, o.axes) for o in (*x.held, *x.operands))
    return _not_elementwise(x.closure, len(x.held), tiles, x.told is not None, operands)


@functools.lru_cache(maxsize=256)
def _not_elementwise(
    closure: Closure, held: int, tiles: int, told: bool, operands: tuple[tuple[jnp.dtype, str], ...]
) -> str | None:
    wide = lambda dtype: jnp.float32 if jnp.issubdtype(dtype, jnp.floating) else dtype
    along = lambda axes: tuple(n if a in axes else 1 for a, n in zip("ts", _TILE, strict=True))
    shape = lambda axes: along(axes) if set("ts") & set(axes) else ()
    arguments = [jax.ShapeDtypeStruct(_TILE, jnp.float32)] * tiles
    indices = ((), ()) if told else ()
    arguments += [jax.ShapeDtypeStruct(x, jnp.int32) for x in (*indices, (_TILE[0], 1), (1, _TILE[1]))]
    given = [jax.ShapeDtypeStruct(shape(axes), wide(dtype)) for dtype, axes in operands]
    traced = jax.make_jaxpr(lambda held, *rest: closure.build(held)(*rest))(given[:held], *arguments, *given[held:])
    if traced.consts:  # NumPy's numbers become part of the program
        return "takes functions without arrays of their own: give the array as a jattn.operand"
    look_ups = primitives(traced.jaxpr) & _LOOK_UPS
    return f"takes elementwise functions, not {' or '.join(sorted(look_ups))}" if look_ups else None
