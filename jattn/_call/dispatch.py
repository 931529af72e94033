"""Which backend runs a problem, why not the others, and the way there."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jattn import _derivatives
from jattn._call.problem import Problem, reduce
from jattn._call.targets import Target
from jattn._terms import Operand, rows
from jattn.backends import BACKENDS, whole_rows
from jattn.backends.contract import Backend, Direct, Fused, Spec


class UnsupportedError(NotImplementedError):
    """A backend was insisted on that cannot do what was asked."""


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
    with jax.named_scope(f"jattn.attention/{backend.name}"):  # as profiles show it
        if problem.empty:
            sizes, dtype = problem.sizes, problem.query.dtype
            shape = tuple(sizes[a] for a in "bth")
            lse = jnp.full(shape, -jnp.inf, jnp.promote_types(dtype, jnp.float32))
            return with_sinks(jnp.zeros((*shape, sizes["e"]), dtype), lse, problem.sinks)
        if isinstance(backend, Direct):
            return backend.compute(problem)
        if not problem.normalizer.is_softmax:
            return whole_rows.attention(problem), None
        assert isinstance(backend, Fused), backend  # what is neither refuses every problem
        q, k, v, operands, signature = reduce(problem)
        spec = Spec(backend, signature, problem.query.dtype, problem.precision, blocks, target)
        return with_sinks(*_derivatives.attend(spec, q, k, v, operands), problem.sinks)


def choose(problem: Problem, implementation: str | Backend | None, target: Target) -> tuple[Backend, dict[str, str]]:
    """The backend, and of each other one the reason why it was not chosen.

    Raises:
      ValueError: there is no backend of that name.
      UnsupportedError: the one that was asked for cannot do what was asked.
    """
    known = {x.name: x for x in BACKENDS}
    if isinstance(implementation, Backend):
        known[implementation.name] = implementation
        implementation = implementation.name
    elif implementation is not None and implementation not in known:
        raise ValueError(f"implementation must be None or one of {', '.join(sorted(known))}, got {implementation!r}")
    reasons = {name: x.refuses(problem, target) for name, x in known.items()}
    symbolic = [str(n) for n in problem.sizes.values() if not isinstance(n, int)]
    if symbolic:  # sizes of `jax.export`: tiles are cut while tracing
        reason = f"takes sizes that are numbers, not {' and '.join(dict.fromkeys(symbolic))}"
        reasons = {name: None if isinstance(x, Direct) else reason for name, x in known.items()}
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
    return known[chosen], {name: reason or why for name, reason in reasons.items() if name != chosen}
