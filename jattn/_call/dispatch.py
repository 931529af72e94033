"""Which backend runs a problem, why not the others, and the way there."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jattn_kernels import chips, tables

from jattn import _derivatives
from jattn._call import pages, scales
from jattn._call.problem import Problem, reduce
from jattn._call.targets import Target
from jattn._terms import Operand, rows
from jattn.backends import BACKENDS, whole_rows
from jattn.backends.contract import Backend, Direct, Fused, Spec
from jattn.scores import Dot, General


class UnsupportedError(NotImplementedError):
    """A backend was insisted on that cannot do what was asked.

    >>> import jax.numpy as jnp, jattn
    >>> x = jnp.ones((1, 8, 2, 16))
    >>> try:
    ...     jattn.attention(x, x, x, implementation="cudnn")
    ... except jattn.UnsupportedError as error:
    ...     print(str(error).partition(";")[0])
    implementation='cudnn': runs on GPU, not cpu
    """


def with_sinks(out: jax.Array, lse: jax.Array, sinks: Operand | None) -> tuple[jax.Array, jax.Array]:
    """out and lse once the sinks are in the denominator."""
    if sinks is None:
        return out, lse
    share, lse = rows.with_sink(lse, sinks.array.astype(lse.dtype))
    return (out * share[..., None]).astype(out.dtype), lse


def run(
    problem: Problem, backend: Backend, blocks: tuple[int, int] | None, target: Target
) -> tuple[jax.Array, jax.Array | None]:
    """out and, of a softmax, lse.  Where there is nothing to attend to no backend is asked."""
    with jax.named_scope(f"jattn.attention/{backend.name}"):  # profiles show the call by this name
        if problem.empty:
            sizes, dtype = problem.sizes, problem.query.dtype
            shape = tuple(sizes[a] for a in "bth")
            lse = jnp.full(shape, -jnp.inf, jnp.promote_types(dtype, jnp.float32))
            return with_sinks(jnp.zeros((*shape, sizes["e"]), dtype), lse, problem.sinks)
        if (in_pages := _in_pages(problem, backend, blocks, target)) is not None:
            *arrays, spec = in_pages
            return with_sinks(*_derivatives.in_pages.attend(spec, *arrays), problem.sinks)
        problem = _whole_float32(scales.applied(pages.gathered(problem)), target)
        if isinstance(backend, Direct):
            return backend.compute(scales.cast(problem))
        if not problem.normalizer.is_softmax:
            return whole_rows.attention(problem), None
        assert isinstance(backend, Fused), backend  # what is neither refuses every problem
        q, k, v, operands, signature = reduce(problem)
        spec = Spec(backend, signature, problem.query.dtype, problem.precision, blocks, target)
        return with_sinks(*_derivatives.attend(spec, q, k, v, operands), problem.sinks)


def reads_pages(problem: Problem, backend: Backend, blocks: tuple[int, int] | None, target: Target) -> bool:
    """Whether a backend reads keys and values where they lie in pages, so that none are copied."""
    flag = lambda x: [jnp.zeros(())] if _in_pages(x, backend, blocks, target) is not None else []
    return bool(jax.eval_shape(flag, problem))


def _in_pages(
    problem: Problem, backend: Backend, blocks: tuple[int, int] | None, target: Target
) -> tuple[Any, ...] | None:
    """Query, pools, table, operands and spec of a problem whose keys a backend reads from their pages; None where they
    are gathered: on several devices, where a score makes other keys of them, and of how many examples is not known."""
    if not isinstance(backend, Fused) or backend.in_pages is None or problem.pages is None:
        return None
    mesh = jax.sharding.get_abstract_mesh()
    several = target.layout is not None or (not mesh.empty and mesh.size > 1)
    symbolic = not isinstance(problem.sizes["b"], int)
    if several or symbolic or not problem.normalizer.is_softmax or not isinstance(problem.score, (Dot, General)):
        return None
    own = pages.with_scales_gathered(problem)
    q, k, v, operands, signature = reduce(_whole_float32(scales.applied(own), target))
    spec = Spec(backend, signature, problem.query.dtype, problem.precision, blocks, target)
    if not backend.in_pages.takes(spec, q, k, v, problem.pages, operands):
        return None
    return q, k, v, problem.pages, operands, spec


def _whole_float32(problem: Problem, target: Target) -> Problem:
    """On a GPU XLA's products round float32 to the 10 bits of mantissa of TF32, unless told otherwise: this tells it.

    What the caller says comes first: `precision`, or `jax.default_matmul_precision`.
    """
    default = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]  # made by JAX
    said = problem.precision is not None or default is not None
    if said or target.capability is None or problem.query.dtype != jnp.float32:
        return problem
    return dataclasses.replace(problem, precision=jax.lax.Precision.HIGHEST)


class Choice(NamedTuple):
    """Who runs a call, and why not the others."""

    backend: Backend
    """Who runs it; its backward pass is that of the next best where its own has not been confirmed."""
    others: dict[str, str]
    """Each other backend, and the reason why it was not chosen."""
    evidence: str | None = None
    """Which recorded run confirmed the backend, or what is known of it without one; None where it needs none."""


def choose(
    problem: Problem,
    implementation: object,
    target: Target,
    confirmed: Sequence[tables.Confirmed] | None = None,
) -> Choice:
    """The backend that was asked for; else the first of `BACKENDS` that can, and that a run has confirmed if it needs
    one.

    Each pass needs one of its own: where only the forward pass is confirmed, gradients are the next best's; where no
    run has read pages, they are gathered.

    Args:
      confirmed: the recorded runs, those of `tables/gpu.json` unless given.

    Raises:
      ValueError: there is no backend of that name.
      UnsupportedError: the one that was asked for cannot do what was asked.
    """
    confirmed = tables.confirmed("gpu") if confirmed is None else confirmed
    known, asked = _known(implementation)
    reasons = _reasons(scales.outlined(pages.outlined(problem)), known, asked, target)
    able = [x for name, x in known.items() if reasons[name] is None]
    if asked is not None and reasons[asked] is not None:
        names = " and ".join(x.name for x in able)
        raise UnsupportedError(f"implementation={asked!r}: {reasons[asked]}; {names} can, or pass None")
    passes = *tables.PASSES, tables.PAGES
    runs = {x.name: {p: _run_of(x, p, problem, target, confirmed) for p in passes} for x in able if x.untried}
    forward, backward = ([x for x in able if x.untried is None or runs[x.name][p]] for p in tables.PASSES)
    chosen = forward[0] if asked is None else known[asked]
    gradients = chosen
    if asked is None and chosen not in backward:
        gradients = next(x for x in backward if isinstance(x, Fused))

    def why(x: Backend) -> str:
        if asked is not None:
            return "was not asked for"
        return f"{chosen.name} is faster" if x in forward else _unconfirmed(x, target)

    others = {name: reasons[name] or why(x) for name, x in known.items() if name != chosen.name}
    evidence = _evidence(chosen, runs[chosen.name], gradients) if chosen.untried else None
    backend = _with_gradients(chosen, gradients)
    if asked is None and isinstance(backend, Fused) and backend.in_pages and backend.untried:
        backend = backend if runs[backend.name][tables.PAGES] else dataclasses.replace(backend, in_pages=None)
    return Choice(backend, others, evidence)


def _known(implementation: object) -> tuple[dict[str, Backend], str | None]:
    """All backends by name, in order of preference, and the name of the one that was asked for."""
    known = {x.name: x for x in BACKENDS}
    if isinstance(implementation, Backend):
        known[implementation.name] = implementation
        return known, implementation.name
    if implementation is not None and not (isinstance(implementation, str) and implementation in known):
        raise ValueError(f"implementation must be None or one of {', '.join(sorted(known))}, got {implementation!r}")
    return known, implementation


def _reasons(problem: Problem, known: dict[str, Backend], asked: str | None, target: Target) -> dict[str, str | None]:
    """Why each backend cannot run the problem there."""
    symbolic = [str(n) for axis, n in problem.sizes.items() if axis != "b" and not isinstance(n, int)]
    if not symbolic:
        return {name: x.refuses(problem, target) for name, x in known.items()}
    # sizes of `jax.export`: tiles are cut while tracing
    reason = f"takes sizes that are numbers, not {' and '.join(dict.fromkeys(symbolic))}"
    if asked is None or not isinstance(known[asked], Direct):
        who = "attention in tiles" if asked is None else f"implementation={asked!r}"
        raise UnsupportedError(
            f"{who} {reason}: export it for each size, or with implementation='reference', which computes all pairs at"
            " once"
        )
    return {name: None if isinstance(x, Direct) else reason for name, x in known.items()}


def _run_of(
    backend: Backend, direction: str, problem: Problem, target: Target, confirmed: Sequence[tables.Confirmed]
) -> tables.Confirmed | None:
    """The run that confirms a backend's pass on the chip, for the arrays' dtype, and for keys and values of 8 bits if
    there are such; None if there is none, or if the kernels would be interpreted.

    A run on another chip of the same compute capability will do: it ran the same machine code, on multiprocessors that
    are alike; an H200 is an H100 with other memory.
    """
    arrays = problem.query, problem.key, problem.value
    dtypes = {x.dtype.name for x in arrays if x.dtype not in scales.NARROW}
    needed = {direction, *([tables.NARROW] if any(x.dtype in scales.NARROW for x in arrays) else [])}
    if target.capability is None or target.interpret or len(dtypes) > 1:
        return None
    here = (backend.name, *dtypes)
    alike = [x for x in confirmed if x[1:3] == here and needed <= {*x.passes} and _capability(x) == target.capability]
    return next((x for x in alike if x.chip == target.chip), next(iter(alike), None))


def _capability(run: tables.Confirmed) -> tuple[int, int] | None:
    """The compute capability of the chip on which a run was made; None for a chip that is not in the table."""
    chip = chips.GPUS.get(run.chip)
    return chip and chip.capability


def _unconfirmed(backend: Backend, target: Target) -> str:
    """Why a backend that no run has confirmed is not chosen."""
    if target.platform != "gpu":
        return f"is simulated, slowly, where it is asked for: implementation={backend.name!r} insists"
    return f"{backend.untried}: implementation={backend.name!r} insists, `python -m bench gpu --check` tries it here"


def _evidence(backend: Backend, runs: dict[str, tables.Confirmed | None], gradients: Backend) -> str:
    forward, backward = (runs[x] for x in tables.PASSES)
    if forward is None:
        return str(backend.untried)
    if gradients is not backend:
        return f"forward pass confirmed ({forward}), gradients by {gradients.name}"
    if backward is None:
        return f"forward pass confirmed ({forward}), backward {backend.untried}"
    return f"confirmed ({forward})" if backward == forward else f"confirmed ({forward}; backward {backward})"


def _with_gradients(backend: Backend, other: Backend) -> Backend:
    """The backend with the backward pass of another."""
    if other is backend:
        return backend
    assert isinstance(backend, Fused), backend
    assert isinstance(other, Fused), other
    return dataclasses.replace(backend, backward=other.backward)
