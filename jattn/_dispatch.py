"""Which backend runs a problem, and why not the others."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jattn import _primitives, _strips, normalizers, reference
from jattn._problem import PassSizes, Problem, Spec, reduce
from jattn._target import Target
from jattn.scores import Additive


class UnsupportedError(NotImplementedError):
    """A backend was insisted on that cannot do what was asked."""


class Backend(NamedTuple):
    """A way to run attention: `refuses(problem)` gives the reason why it cannot, or None."""

    name: str
    refuses: Callable[[Problem, Target], str | None]
    run: Callable[[Problem, tuple[int, int] | PassSizes | None, Target], tuple[jax.Array, jax.Array | None]]


def _run_reference(problem: Problem, blocks: Any, target: Target) -> tuple[jax.Array, jax.Array | None]:
    del blocks, target
    out, lse, _ = reference.attention(problem)
    return out, lse


def _run_fused(name: str) -> Callable:
    def run(problem: Problem, blocks: Any, target: Target) -> tuple[jax.Array, jax.Array | None]:
        q, k, v, operands, signature = reduce(problem)
        spec = Spec(name, signature, problem.query.dtype, problem.precision, blocks, target)
        out, lse = _primitives.attend(spec, q, k, v, operands)
        return with_sinks(out, lse, problem.sinks)

    return run


def with_sinks(out: jax.Array, lse: jax.Array, sinks: Any) -> tuple[jax.Array, jax.Array]:
    """out and lse once the sinks are in the denominator."""
    if sinks is None:
        return out, lse
    share, lse = normalizers.with_sink(lse, sinks.array.astype(lse.dtype))
    return (out * share[..., None]).astype(out.dtype), lse


def _run_rows(problem: Problem, blocks: Any, target: Target) -> tuple[jax.Array, None]:
    """Normalisers without an online form see whole rows, a strip at a time."""
    del blocks, target
    q, k, v, operands, signature = reduce(problem)

    def finish(terms, normalizer, scores, value, i, j):
        return _strips.output(terms, scores, normalizer(scores), value, i, j, problem.precision, problem.query.dtype)

    return _strips.rows(signature, q, k, v, operands, finish, problem.normalizer), None


def _run_blockwise(problem: Problem, blocks: Any, target: Target) -> tuple[jax.Array, jax.Array | None]:
    return (_run_fused("blockwise") if problem.normalizer.is_softmax else _run_rows)(problem, blocks, target)


def _refuses_tpu(problem: Problem, target: Target) -> str | None:
    if not target.tpu:
        return f"runs on TPU, not {target.platform}; JATTN_INTERPRET=1 interprets it, slowly"
    if not problem.normalizer.is_softmax:
        return f"has no kernel for normalizer {type(problem.normalizer).__name__.lower()}"
    if isinstance(problem.score, Additive):
        return "has no kernel for score additive, which is not a product"
    dtypes = {x.dtype.name for x in (problem.query, problem.key, problem.value)}
    if not dtypes <= {"float32", "bfloat16"}:
        return f"takes float32 and bfloat16, not {' and '.join(sorted(dtypes - {'float32', 'bfloat16'}))}"
    return importlib.import_module("jattn.backends.tpu").unfit(problem, target)


def _planned(where: str) -> Callable[[Problem, Target], str]:
    return lambda problem, target: f"this release of jattn has no {where} yet"


_PLANNED = {"pallas_triton": "Triton kernel", "cudnn": "cuDNN binding"}
BACKENDS = {  # in order of preference
    "pallas_tpu": Backend("pallas_tpu", _refuses_tpu, _run_fused("pallas_tpu")),
    **{name: Backend(name, _planned(what), _run_fused(name)) for name, what in _PLANNED.items()},
    "blockwise": Backend("blockwise", lambda problem, target: None, _run_blockwise),
    "reference": Backend("reference", lambda problem, target: None, _run_reference),
}


def empty(problem: Problem) -> bool:
    """Whether there is no query, no key or no batch element."""
    sizes = problem.sizes
    return any(isinstance(sizes[a], int) and sizes[a] == 0 for a in "bts")


def run(
    problem: Problem, backend: str, blocks: tuple[int, int] | PassSizes | None, target: Target
) -> tuple[jax.Array, jax.Array | None]:
    """out and, of a softmax, lse.  Where there is nothing to attend to no backend is asked."""
    if empty(problem):
        sizes, dtype = problem.sizes, problem.query.dtype
        shape = tuple(sizes[a] for a in "bth")
        lse = jnp.full(shape, -jnp.inf, jnp.promote_types(dtype, jnp.float32))
        return with_sinks(jnp.zeros((*shape, sizes["e"]), dtype), lse, problem.sinks)
    return BACKENDS[backend].run(problem, blocks, target)


def choose(problem: Problem, implementation: str | None, target: Target) -> tuple[str, dict[str, str]]:
    """The backend's name, and of each other one the reason why it was not chosen."""
    if implementation is not None and implementation not in BACKENDS:
        raise ValueError(f"implementation must be None or one of {', '.join(sorted(BACKENDS))}, got {implementation!r}")
    reasons = {name: x.refuses(problem, target) for name, x in BACKENDS.items()}
    symbolic = [str(n) for n in problem.sizes.values() if not isinstance(n, int)]
    if symbolic:  # sizes of `jax.export`: tiles are cut while tracing
        reason = f"takes sizes that are numbers, not {' and '.join(dict.fromkeys(symbolic))}"
        reasons = {name: None if name == "reference" else reason for name in reasons}
        if implementation is None:
            raise UnsupportedError(
                f"attention in tiles {reason}: export it for each size, or with implementation='reference', which"
                " computes all pairs at once"
            )
    able = [name for name, reason in reasons.items() if reason is None]
    if implementation is not None and reasons[implementation] is not None:
        raise UnsupportedError(
            f"implementation={implementation!r}: {reasons[implementation]}; {' and '.join(able)} can, or pass None"
        )
    chosen = implementation or able[0]
    why = "was not asked for" if implementation else f"{chosen} is faster"
    return chosen, {name: reason or why for name, reason in reasons.items() if name != chosen}
