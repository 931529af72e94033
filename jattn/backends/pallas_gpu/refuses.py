"""What the GPU kernels cannot run."""

from __future__ import annotations

import functools
import os
from typing import Any

import jax
import jax.numpy as jnp

from jattn._call.problem import Problem
from jattn._call.scales import NARROW
from jattn._call.targets import Target
from jattn._terms import Operand
from jattn._terms.closures import Closure
from jattn.backends.pallas import fit
from jattn.backends.pallas.fit import UserFunction
from jattn.backends.pallas_gpu.sizes import FEW, generation, unfit_operands, widens

_THREADS = 8  # the simulator was seen to need so many: warpgroups of a block, those that copy, and who waits for them
LONGEST = 2**24  # queries or keys: positions up to here are exact in float32
WIDEST = 256  # numbers of a row of the accumulator, which stays in registers
DTYPES = ("bfloat16", "float16")


def unfit(problem: Problem, target: Target) -> str | None:
    """Why the kernels cannot run a problem there, None if they can; a clause whose subject is the backend."""
    return (
        _unfit_target(target)
        or unfit_problem(problem)
        or _unfit_narrow(problem, target)
        or unfit_terms(problem)
        or _unfit_operands(problem, target)
    )


def _unfit_target(target: Target) -> str | None:
    if not target.gpu:
        return f"runs on GPU, not {target.platform}; JATTN_INTERPRET=1 simulates it, slowly"
    if jax.__version_info__ < (0, 11):
        return f"needs jax 0.11 or newer, Python 3.12 (this is jax {jax.__version__})"
    if not target.interpret:
        return unfit_capability(target.capability)
    if int(os.environ.get("NPROC") or os.cpu_count() or 1) < _THREADS:
        return (
            "is simulated by threads that wait for one another, more than XLA has here: set NPROC=16 in the environment"
            " before jax computes anything"
        )
    return None


def unfit_capability(capability: tuple[int, int] | None) -> str | None:
    """Why there are no kernels for such a GPU, None if there are."""
    if capability is None:
        return "runs on NVIDIA's GPUs alone"
    major, minor = capability
    if capability in ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0)):
        return None
    have = "has kernels for Ampere (sm_80, sm_86), Ada (sm_89), Hopper (sm_90) and Blackwell (sm_100)"
    if major < 8:
        return f"{have}, not sm_{major}{minor}, which has neither tensor cores for bfloat16 nor asynchronous copies"
    return f"{have}, not yet for sm_{major}{minor}, whose products and copies are others"


def unfit_problem(problem: Problem) -> str | None:
    """Why there is no kernel for such a problem, None if there is."""
    return fit.unfit_kind(problem) or _too_long(problem) or _unfit_dtypes(fit.widened(problem)) or _too_wide(problem)


def _too_long(problem: Problem) -> str | None:
    longest = max((n for n in (problem.sizes["t"], problem.sizes["s"]) if isinstance(n, int)), default=0)
    if longest > LONGEST:
        return f"takes up to {LONGEST} queries and keys, not {longest}: positions are float32 there, exact up to that"
    return None


def _unfit_dtypes(problem: Problem) -> str | None:
    dtypes = {x.dtype.name for x in (problem.query, problem.key, problem.value)}
    if "float32" in dtypes:
        return (
            "takes bfloat16 and float16, not float32: TF32, the tensor cores' own, rounds it to 10 bits of mantissa;"
            " blockwise computes it whole"
        )
    if len(dtypes) > 1 and dtypes <= {*DTYPES}:
        return f"takes queries, keys and values of one dtype, not {' and '.join(sorted(dtypes))}"
    return fit.unfit_dtypes(problem, DTYPES)


def _unfit_narrow(problem: Problem, target: Target) -> str | None:
    """Keys of 8 bits that few queries see are cast in the kernel or nowhere: to cast all takes longer than the step."""
    stored = [x for x in (problem.key, problem.value) if x.dtype in NARROW]
    t = problem.sizes["t"]
    if not isinstance(t, int) or t > FEW or all(widens(target, x) for x in stored):
        return None
    widths = " and ".join(sorted({str(x.shape[-1]) for x in stored}))
    return (
        f"widens keys and values of 8 bits for {FEW} queries and fewer on Hopper and Blackwell, where 32 divides their"
        f" width: not of width {widths} on {generation(target).capitalize()}"
    )


def _too_wide(problem: Problem) -> str | None:
    sizes = {"d": problem.key.shape[-1], "e": problem.sizes["e"]}  # of the key: a matrix score may widen the query
    wide = [f"{a} {n}" for a, n in sizes.items() if isinstance(n, int) and n > WIDEST]
    if wide:
        return (
            f"takes widths of up to {WIDEST}, not {' and '.join(wide)}: the accumulator of so wide a row does not fit"
            " a thread's registers"
        )
    return None


def unfit_terms(problem: Problem) -> str | None:
    """Why a kernel cannot evaluate the terms of a problem, None if it can."""
    return fit.unfit_terms(problem, _unfit_operand, _unfit_function)


def _unfit_operands(problem: Problem, target: Target) -> str | None:
    terms = problem.mods, problem.mask, problem.gates
    operands = [(x.array.dtype, x.axes) for x in fit.parts_of(terms, Operand)]
    d, e = problem.key.shape[-1], problem.value.shape[-1]
    return unfit_operands(target, d, e, operands) if isinstance(d, int) and isinstance(e, int) else None


def _unfit_operand(x: Operand) -> str | None:
    if x.array.ndim > len(x.axes) and {*"ts"} & {*x.axes}:
        return f"looks up operands without axes t and s, not {list(x.array.shape)} with axes {x.axes!r}"
    return None


def _unfit_function(x: UserFunction, tiles: int) -> str | None:
    arrays = tuple((o.array.shape[len(o.axes) :], o.array.dtype, o.axes) for o in (*x.held, *x.operands))
    return _not_lowered(x.closure, len(x.held), tiles, x.told is not None, arrays)


@functools.lru_cache(maxsize=256)
def _not_lowered(
    closure: Closure,
    held: int,
    tiles: int,
    told: bool,
    arrays: tuple[tuple[tuple[int, ...], jnp.dtype, str], ...],
) -> str | None:
    from jattn_kernels.gpu.lowering import Column, Row, Table, why_not

    rows, columns = shape = 64, 128
    of = jax.ShapeDtypeStruct

    def argument(further: tuple[int, ...], dtype: jnp.dtype, axes: str) -> Any:
        if jnp.issubdtype(dtype, jnp.floating) and not further:
            dtype = jnp.dtype(jnp.float32)
        if further:
            return Table(None, further, dtype)
        along = {*axes} & {*"ts"}
        tagged = {"t": lambda: Row(of((rows,), dtype)), "s": lambda: Column(of((columns,), dtype))}
        return of(shape if along else (), dtype) if len(along) != 1 else tagged[along.pop()]()

    given = [argument(*x) for x in arrays]
    indices = [of((), jnp.int32)] * 2 if told else []
    positions = [*indices, Row(of((rows,), jnp.int32)), Column(of((columns,), jnp.int32))]
    fn = lambda held, *rest: closure.build(held)(*rest)
    return why_not(fn, shape, given[:held], *[of(shape, jnp.float32)] * tiles, *positions, *given[held:])
