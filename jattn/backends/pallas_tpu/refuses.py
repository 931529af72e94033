"""What the TPU kernels cannot run."""

from __future__ import annotations

from jattn_kernels import chips

from jattn._call.problem import Problem
from jattn._call.targets import Target
from jattn.backends.pallas.fit import unfit_terms
from jattn.mods import Relative

LONGEST = 2**24  # queries or keys; up to that, tiles can be so large that scalar memory says which are visited
_PER_POSITION = 16  # bytes for each relative position: a float32 of the table and one of its gradient, twice each


def unfit(problem: Problem, target: Target) -> str | None:
    """Why the terms of a problem cannot be evaluated inside a kernel, None if they can."""
    return _too_long(problem, target) or unfit_terms(problem)


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
