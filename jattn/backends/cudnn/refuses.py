"""Where cuDNN computes what jattn promises.

Left out though `jax.nn` hands it to cuDNN: a bias, since one of -inf makes NaN there, and after one of -1e9 in a whole
row its single float32 of lse is too short for the gradients; and a mask of booleans, which becomes such a bias.
"""

from __future__ import annotations

from jattn._call.problem import Problem
from jattn._call.targets import Target
from jattn._terms import Offsets, Operand
from jattn._terms.reach import span
from jattn.backends.cudnn import binding
from jattn.backends.cudnn.masked import parts
from jattn.gates import Dropout
from jattn.mods import Bias, Mod, SoftCap
from jattn.scores import Dot

_DTYPES = {"bfloat16", "float16"}


def unfit(problem: Problem, target: Target) -> str | None:
    """Why cuDNN cannot run a problem there, None if it can; a clause whose subject is the backend."""
    return (
        _unfit_target(target)
        or _unfit_terms(problem)
        or _unfit_arrays(problem, target)
        or _unfit_mask(problem)
        or binding.missing()
    )


def _unfit_target(target: Target) -> str | None:
    if target.platform != "gpu":
        return f"runs on GPU, not {target.platform}"
    if target.capability is None:
        return "runs on NVIDIA's GPUs alone"
    if target.capability < (8, 0):
        return "runs on Ampere and newer (sm_80), not sm_{}{}".format(*target.capability)
    return None


def _unfit_terms(problem: Problem) -> str | None:
    if not problem.normalizer.is_softmax or problem.normalizer.mods:
        return f"has no normalizer {type(problem.normalizer).__name__.lower()}"
    if not isinstance(problem.score, Dot):  # queries and keys of the other products are float32
        return f"has no score {type(problem.score).__name__.lower()}: it takes queries and keys as they are"
    if isinstance(problem.score.scale, Operand):
        return "takes a scale that is a number, not an array"
    for mod in problem.mods:
        return _unfit_mod(mod)
    for gate in problem.gates:
        if isinstance(gate, Dropout):
            return "computes another dropout: not the bits of the other backends"
        return f"has no gate {type(gate).__name__.lower()}"
    return None


def _unfit_mod(mod: Mod) -> str:
    if isinstance(mod, Bias):
        return "takes no bias that may hold -inf, or -1e9 in a whole row: NaN and wrong gradients come of those"
    return "has no soft cap" if isinstance(mod, SoftCap) else f"has no mod {type(mod).__name__.lower()}"


def _unfit_arrays(problem: Problem, target: Target) -> str | None:
    dtypes = {x.dtype.name for x in (problem.query, problem.key, problem.value)}
    if not dtypes <= _DTYPES:
        return f"takes bfloat16 and float16, not {' and '.join(sorted(dtypes - _DTYPES))}"
    if len(dtypes) > 1:
        return f"takes a query, key and value of one dtype, not {' and '.join(sorted(dtypes))}"
    d, e = problem.sizes["d"], problem.sizes["e"]
    if d != e:
        return f"takes keys and values of one width, not d {d} and e {e}"
    if d % 8:
        return f"takes widths that 8 divides, not {d}"
    hopper = target.capability is not None and target.capability[0] == 9
    most = 256 if hopper else 128
    if d > most:
        return f"takes widths of up to {most} there, not {d}" + ("" if hopper else " (256 on Hopper)")
    return None


def _unfit_mask(problem: Problem) -> str | None:
    if problem.mask is None:
        return None
    if problem.origin.offsets != Offsets():
        return "takes masks whose positions are those of the call"
    known = parts(problem.mask)
    if known is None:
        return "takes masks of causal(), windows to the left and lengths, joined with &, and no others"
    t, s = problem.sizes["t"], problem.sizes["s"]
    if not (isinstance(t, int) and isinstance(s, int)):
        return None  # sizes of `jax.export`, which no backend in tiles takes
    window = span(known.windows).open(t, s)
    if window.right not in (0, float("inf")):
        return "takes a window that ends with the query's own position, or none"
    if window.left != float("inf") and window.right != 0:
        return "takes a window to the left of causal queries alone"
    if window.left < 0:
        return "takes a window that a query is in"
    if window.left != float("inf") and t > s:
        return f"takes a window where there are no more queries than keys, not t {t} and s {s}"
    return None
