"""What the GPU kernels cannot run."""

from __future__ import annotations

import jax

from jattn._call.problem import Problem
from jattn._call.targets import Target
from jattn.scores import Additive

WIDEST = 256  # numbers of a row of the accumulator, which stays in registers
DTYPES = {"float16", "bfloat16"}


def unfit(problem: Problem, target: Target) -> str | None:
    """Why the kernels cannot run a problem there, None if they can; a clause whose subject is the backend."""
    return _unfit_target(target) or unfit_problem(problem)


def _unfit_target(target: Target) -> str | None:
    if not target.gpu:
        return f"runs on GPU, not {target.platform}; JATTN_INTERPRET=1 simulates it, slowly"
    if jax.__version_info__ < (0, 11):
        return f"needs jax 0.11 or newer, Python 3.12 (this is jax {jax.__version__})"
    return None if target.interpret else unfit_capability(target.capability)


def unfit_capability(capability: tuple[int, int] | None) -> str | None:
    """Why there are no kernels for such a GPU, None if there are."""
    if capability is None:
        return "runs on NVIDIA's GPUs alone"
    major, minor = capability
    if major < 8:
        return (
            f"runs on Ampere and newer (sm_80), not sm_{major}{minor}, which has neither tensor cores for bfloat16 nor"
            " asynchronous copies (cp.async)"
        )
    if major > 10:
        return f"has kernels for sm_80 to sm_10x, not sm_{major}{minor}, which has other tensor cores"
    return None


def unfit_problem(problem: Problem) -> str | None:
    """Why there is no kernel for such a problem, None if there is."""
    if not problem.normalizer.is_softmax:
        return f"has no kernel for normalizer {type(problem.normalizer).__name__.lower()}"
    if isinstance(problem.score, Additive):
        return "has no kernel for score additive, which is not a product"
    dtypes = {x.dtype.name for x in (problem.query, problem.key, problem.value)}
    if "float32" in dtypes:
        return (
            "takes bfloat16 and float16, not float32: TF32, the tensor cores' own, rounds it to 10 bits of mantissa;"
            " blockwise computes it whole"
        )
    if not dtypes <= DTYPES:
        return f"takes bfloat16 and float16, not {' and '.join(sorted(dtypes - DTYPES))}"
    sizes = {"d": problem.key.shape[-1], "e": problem.sizes["e"]}  # of the key: a matrix score may widen the query
    wide = [f"{a} {n}" for a, n in sizes.items() if isinstance(n, int) and n > WIDEST]
    if wide:
        return (
            f"takes widths of up to {WIDEST}, not {' and '.join(wide)}: the accumulator of so wide a row does not fit"
            " a thread's registers"
        )
    return None
