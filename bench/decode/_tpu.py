"""Steps on TPUs that are not there: kernels by their counted cycles, the rest of the program by its bytes."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from jattn_kernels.chips import TPUS

from bench.decode._cases import Case
from bench.decode._rows import Row
from bench.tpu._cases import Case as Walked
from bench.tpu._cycles import clock

CountCycles = Callable[[Walked, str, dict[str, Any]], Mapping[str, Any]]
"""As `bench.tpu._compile.Compiler.count`."""


def contenders(case: Case) -> tuple[str, ...]:
    """Who has a program for the case."""
    return ("jattn", "paged_attention", "ragged") if case.page else ("jattn",)


def estimate(case: Case, chip: str, count: CountCycles) -> Iterator[Row]:
    """A row for each contender."""
    known = TPUS[chip]
    limit = 1e3 * case.bytes(2) / known.bandwidth
    for contender in contenders(case):
        walked = Walked(chip, "full", case.b, case.h, case.n, case.d, "fwd")
        answer = count(walked, "decode", {"step": asdict(case), "contender": contender})
        if "error" in answer:
            yield Row(case, chip, contender, None, limit, error=answer["error"])
            continue
        kernels = 1e3 * sum(one["cycles"] for one in answer["kernels"].values()) / clock(known)
        around = 1e3 * answer["between_bytes"] / known.bandwidth
        yield Row(case, chip, contender, kernels + around, limit, around)
