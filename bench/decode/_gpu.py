"""Steps on GPUs that are not there: the kernel by its counted instructions, of who computes and who copies, or by what
it reads, whichever takes longer, the rest of the program by its bytes."""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from jattn_kernels.chips import GPUS

from bench._hlo import between
from bench.decode._cases import Case
from bench.decode._rows import Row
from bench.gpu._cases import Case as Compiled
from bench.gpu._contenders import FORWARD
from bench.gpu._estimate import estimate as counted
from bench.gpu._kernels import from_json
from bench.gpu._static import ask, compiled

Ask = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""As `bench.gpu._static.ask`."""


def estimate(case: Case, chip: str, ask: Ask = ask) -> Iterator[Row]:
    """jattn's row."""
    known = GPUS[chip]
    row = functools.partial(Row, case, chip, "jattn", limit=1e3 * case.bytes(2) / known.bandwidth)
    answer = ask({"stage": "decode", "step": asdict(case), "chip": chip})
    if "error" in answer:
        yield row(milliseconds=None, error=answer["error"])
        return
    step = Compiled("decode", case.b, 1, case.h, case.d, "fwd", chip, s=case.seen, g=case.g)
    # One that follows is in the branch that computes all once more, where something that nobody sees was NaN.
    kernel = counted(from_json(answer["kernels"][0]), FORWARD, step, known, case.bytes(2))
    if kernel is None:
        yield row(milliseconds=None, error="no loop of the kernel has products")
        return
    around = 1e3 * answer["between_bytes"] / known.bandwidth
    yield row(milliseconds=kernel.milliseconds + around, around=around, starts=answer["starts"])


def compile_step(request: Mapping[str, Any]) -> dict[str, Any]:
    """In the child: the kernels of jattn's step; of the rest of its program the bytes, and how many kernels start."""
    import jax.numpy as jnp

    from bench.decode._programs import jattn_step, shapes

    case = Case(**request["step"])
    program = lambda: (jattn_step(case, "pallas_gpu"), shapes(case, jnp.bfloat16))
    kernels, optimised = compiled(GPUS[request["chip"]], program, request["dump"])
    rest = between(optimised)
    return {"kernels": kernels, "between_bytes": sum(rest), "starts": len(rest) + 1}
