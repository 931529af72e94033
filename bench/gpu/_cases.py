"""What is compiled and what is timed: chips, asks, shapes and passes."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from bench._passes import DIRECTIONS, flops
from bench.gpu._terms import ASKS, attended_pairs, names

CHIP_NAMES = ("a100", "h100", "b200")  # of each generation one; the others of the table can be asked for
WIDTHS = (64, 128, 256)
STATIC = (2, 4096, 8)  # b, t, h of what is compiled
TIMED = (1, 16)  # b, h of what is timed


@dataclass(frozen=True)
class Case:
    """One row: an ask of `_terms.ASKS`, a shape in bfloat16, and whether the gradients are taken as well.

    `chip` is that for which it is compiled, "" where it runs on what is there.
    """

    ask: str
    b: int
    t: int
    h: int
    d: int
    direction: str
    chip: str = ""

    @property
    def name(self) -> str:
        """What `--filter` searches, e.g. `h100-causal-t4096-d128-fwd`, without the chip where it is timed."""
        chip = f"{self.chip}-" if self.chip else ""
        return f"{chip}{self.ask}-t{self.t}-d{self.d}-{self.direction}"

    @property
    def backward(self) -> bool:
        return self.direction == "fwdbwd"

    @property
    def mask(self) -> str:
        return ASKS[self.ask].mask

    @property
    def flops(self) -> float:
        """What `bench._passes.flops` counts."""
        return flops(self.b * self.h, self.d, attended_pairs(self.mask, self.t), self.backward)


def static_cases(chips: Sequence[str] = CHIP_NAMES) -> list[Case]:
    """What is compiled, the most telling first; a program with gradients holds the forward kernel as well."""
    b, t, h = STATIC
    return [Case(ask, b, t, h, d, "fwdbwd", chip) for chip, d, ask in itertools.product(chips, (128, 64, 256), names())]


def timed_cases() -> list[Case]:
    """What is timed, in order of importance: a run may be cut off at any time."""
    b, h = TIMED
    both = lambda ask, t, d: [Case(ask, b, t, h, d, direction) for direction in DIRECTIONS]
    order = [("causal", 16384, 128), ("plain", 16384, 128)]
    order += [(ask, 16384, 128) for ask in ("alibi", "segments", "softcap", "window", "dropout")]
    order += [("causal", 16384, d) for d in (64, 256)]
    order += [("causal", t, 128) for t in (4096, 1024, 32768, 2048, 8192)]
    order += [("bias", 8192, 128), ("user", 16384, 128), ("relative", 16384, 128), ("all", 16384, 128)]
    order += [("plain", 16384, d) for d in (64, 256)]
    order += [(ask, t, 128) for t in (4096, 1024) for ask in ("plain", "alibi", "segments", "window")]
    order += [("causal", t, d) for d in (64, 256) for t in (4096, 1024)]
    order += [(ask, 16384, d) for d in (64, 256) for ask in ("alibi", "segments")]
    return [case for one in order for case in both(*one)]
