"""From counted cycles to milliseconds: the best of a contender's settings for a case, and what was counted before."""

import functools
import importlib.metadata
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jattn_kernels.chips import TPUS, Tpu

from bench import _report
from bench.tpu._cases import Case
from bench.tpu._contenders import Contender, Setting
from bench.tpu._cycles import MODEL, clock

Reply = Mapping[str, Any]
Compile = Callable[[Case, str, Setting], Reply]


@dataclass(frozen=True)
class Estimate:
    """A contender's best for a case.

    Attributes:
        milliseconds: of all its kernels; None if none of its settings compiled.
        end_to_end: of its kernels and what XLA does around them, at the settings that are best for both together.
        kernels: by name, the counts, setting and milliseconds of each kernel at its best.
        errors: what kept settings from counting.
        counted, of: how many of the contender's settings the compiler has answered for, and how many there are.
    """

    milliseconds: float | None
    end_to_end: float | None = None
    kernels: Mapping[str, Mapping[str, Any]] | None = None
    errors: Sequence[str] = ()
    counted: int = 0
    of: int = 0

    def utilisation(self, case: Case) -> float | None:
        """Useful flops over what the matrix units could do in that time."""
        if self.milliseconds is None:
            return None
        chip = TPUS[case.chip]
        peak = chip.flops["bfloat16"] * chip.cores * clock(chip)
        return case.flops / (1e-3 * self.milliseconds * peak)


@functools.cache
def versions(package: str) -> str:
    """Of a contender's package, of the compiler and of what counts: an answer is of use as long as they stay."""
    packages = " ".join(f"{name}=={importlib.metadata.version(name)}" for name in (package, "libtpu"))
    return f"{packages} model={MODEL}"


class Kept:
    """Answers of the compiler, kept in a file so that an interrupted run resumes.

    Args:
        path: the file.
        versions: what else an answer of a package is kept by, besides the case and the setting.
    """

    def __init__(self, path: Path, versions: Callable[[str], str] = versions):
        self.path = path
        self.versions = versions
        self.answers: dict[str, Reply] = json.loads(path.read_text()) if path.exists() else {}

    def count(
        self, compile_and_count: Compile, case: Case, contender: Contender, setting: Setting, fresh: bool = True
    ) -> Reply | None:
        """The compiler's answer, from the file if it is there and the contender's results may be kept.

        None if it is not there and the compiler is not to be asked: if `fresh` is False.
        """
        if not contender.cached:
            return compile_and_count(case, contender.name, setting)
        key = f"{self.versions(contender.package)} {case.name} {case.shape} {json.dumps(setting, sort_keys=True)}"
        if key in self.answers:
            return self.answers[key]
        if not fresh:
            return None
        answer = compile_and_count(case, contender.name, setting)
        if not answer.get("died"):
            self.answers[key] = answer
            _report.write_json(self.path, self.answers)
        return answer


def estimate(case: Case, contender: Contender, count: Callable[[Case, Setting], Reply | None]) -> Estimate:
    """Count every setting of the contender with fewer heads, scale up, and take the best.

    Settings for which `count` gives None are left out.

    Forward and backward kernels take their best settings separately, among those that one call may mix.
    """
    walked = case.walked()
    scale = case.b * case.h / (walked.b * walked.h)
    chip = TPUS[case.chip]
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    betweens: dict[str, float] = {}
    errors = []
    settings = contender.settings(case)
    answers = [(setting, answer) for setting in settings if (answer := count(walked, setting)) is not None]
    for setting, answer in answers:
        if "error" in answer:
            errors.append(f"{json.dumps(setting)}: {answer['error']}")
            continue
        group = contender.split(setting)
        between = 1e3 * scale * answer["between_bytes"] / chip.bandwidth
        betweens[group] = min(between, betweens.get(group, between))
        for name, counts in answer["kernels"].items():
            time = milliseconds(counts, scale, chip)
            groups[group].append({"name": name, "milliseconds": time, "setting": setting, **counts})
    counted = {"errors": errors, "counted": len(answers), "of": len(settings)}
    if not groups:
        return Estimate(None, **counted)
    bests = {group: _best(kernels) for group, kernels in groups.items()}
    totals = {group: sum(one["milliseconds"] for one in best.values()) for group, best in bests.items()}
    fastest = min(totals, key=totals.__getitem__)
    end_to_end = min(total + betweens[group] for group, total in totals.items())
    return Estimate(totals[fastest], end_to_end, bests[fastest], **counted)


def milliseconds(counts: Mapping[str, Any], scale: float, chip: Tpu) -> float:
    """The time of a kernel with `scale` times as many heads as were walked: it starts up only once."""
    cycles = counts["startup"] + scale * (counts["cycles"] - counts["startup"])
    return 1e3 * cycles / clock(chip)


def _best(kernels: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By name, the fastest."""
    by_name: dict[str, dict[str, Any]] = {}
    for kernel in sorted(kernels, key=lambda one: one["milliseconds"]):
        by_name.setdefault(kernel["name"], kernel)
    return by_name
