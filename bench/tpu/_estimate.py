"""From counted cycles to milliseconds: the best of a contender's settings for a case, and what was counted before."""

import functools
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from jattn_kernels.chips import TPUS, Tpu

from bench import _report
from bench.tpu._bounds import Known, Reply
from bench.tpu._cases import Case, Setting
from bench.tpu._contenders import Contender
from bench.tpu._cycles import MODEL, clock

Compile = Callable[[Case, str, Setting], Reply]


class Coverage(NamedTuple):
    """How many settings of a part were counted, how many need no count, and how many there are."""

    counted: int
    hopeless: int
    of: int


@dataclass(frozen=True)
class Estimate:
    """A contender's best for a case.

    Attributes:
        milliseconds: of all its kernels; None if none of its settings compiled.
        end_to_end: of these, and the least that XLA does around them at any of the settings.
        kernels: by name, the counts, setting and milliseconds of each kernel at its best.
        errors: what kept settings from counting.
        parts: by the direction of each part of the case, for how many settings the compiler has answered, and which.
    """

    milliseconds: float | None
    end_to_end: float | None = None
    kernels: Mapping[str, Mapping[str, Any]] | None = None
    errors: Sequence[str] = ()
    parts: Mapping[str, "Coverage"] = field(default_factory=dict)

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
        known = self.known(case, contender, setting)
        if known is not None or not fresh:
            return known
        answer = compile_and_count(case, contender.name, setting)
        if not answer.get("died"):
            self.answers[self._key(case, contender, setting)] = answer
            _report.write_json(self.path, self.answers)
        return answer

    def known(self, case: Case, contender: Contender, setting: Setting) -> Reply | None:
        """The answer, if it is in the file."""
        return self.answers.get(self._key(case, contender, setting))

    def _key(self, case: Case, contender: Contender, setting: Setting) -> str:
        return f"{self.versions(contender.package)} {case.name} {case.shape} {json.dumps(setting, sort_keys=True)}"


def estimate(
    case: Case,
    contender: Contender,
    count: Callable[[Case, Setting], Reply | None],
    known: Known = lambda case, setting: None,
) -> Estimate:
    """Count every setting of the contender with fewer heads, scale up, and take the best of each kernel.

    Settings that are hopeless by what is known are not counted; those for which `count` gives None are left out.
    """
    walked = case.walked()
    scale = case.b * case.h / (walked.b * walked.h)
    chip = TPUS[case.chip]
    kernels: list[dict[str, Any]] = []
    errors: list[str] = []
    parts: dict[str, Coverage] = {}
    answers: list[Reply] = []
    for part in contender.parts(walked):
        answers = []
        counted = hopeless = 0
        settings = contender.settings(part)
        for setting in settings:
            answer = known(part, setting)
            if answer is None and contender.hopeless(part, setting, settings, known):
                hopeless += 1
                continue
            answer = answer or count(part, setting)
            counted += answer is not None
            if answer is None:
                continue
            if "error" in answer:
                errors.append(f"{json.dumps(setting)}: {answer['error']}")
                continue
            answers.append(answer)
            for name, counts in answer["kernels"].items():
                time = milliseconds(counts, scale, chip)
                kernels.append({"name": name, "milliseconds": time, "setting": setting, **counts})
        parts[part.direction] = Coverage(counted, hopeless, len(settings))
    if not answers:
        return Estimate(None, errors=errors, parts=parts)
    bests = _best(kernels)
    total = sum(one["milliseconds"] for one in bests.values())
    between = min(one["between_bytes"] for one in answers)  # in the last part's program, which is the whole call
    return Estimate(total, total + 1e3 * scale * between / chip.bandwidth, bests, errors, parts)


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
