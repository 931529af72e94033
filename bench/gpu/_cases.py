"""What is compiled and what is timed: chips, asks, shapes and passes."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench._passes import DIRECTIONS, flops
from bench.gpu._terms import ASKS, DOCUMENT, WINDOW, attended_pairs, names, values

CHIP_NAMES = ("a100", "h100", "b200")  # of each generation one; the others of the table can be asked for
WIDTHS = (64, 128, 256)
STATIC = (2, 4096, 8)  # b, t, h of what is compiled
TIMED = (1, 16)  # b, h of what is timed


@dataclass(frozen=True)
class Case:
    """One row: an ask of `_terms.ASKS`, a shape in bfloat16, and whether the gradients are taken as well.

    `chip` is that for which it is compiled, "" where it runs on what is there; `s` and `g` are keys and key heads, 0
    where there are as many as queries and heads; `window`: keys that a query of the window mask sees, `document`: its
    tokens, where some are packed.
    """

    ask: str
    b: int
    t: int
    h: int
    d: int
    direction: str
    chip: str = ""
    s: int = 0
    g: int = 0
    window: int = WINDOW
    document: int = DOCUMENT

    @property
    def name(self) -> str:
        """What `--filter` searches, e.g. `h100-causal-t4096-d128-fwd`, without the chip where it is timed."""
        chip = f"{self.chip}-" if self.chip else ""
        length = f"b{self.b}-s{self.s}" if self.s else f"t{self.t}"
        return f"{chip}{self.ask}-{length}-d{self.d}-{self.direction}"

    @property
    def query(self) -> tuple[int, int, int, int]:
        """The shape of the queries, and of what comes of them."""
        return self.b, self.t, self.h, self.d

    @property
    def key(self) -> tuple[int, int, int, int]:
        """The shape of the keys, and of the values."""
        return self.b, self.s or self.t, self.g or self.h, self.d

    @property
    def backward(self) -> bool:
        return self.direction == "fwdbwd"

    @property
    def mask(self) -> str:
        return ASKS[self.ask].mask

    def options(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments of `jattn.attention`, of the ask's arrays by name."""
        return ASKS[self.ask].options({**arrays, "window": self.window})

    def values(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The ask's arrays by name."""
        return values(ASKS[self.ask], self.b, self.key[1], self.h, rng, self.document)

    @property
    def pairs(self) -> int:
        """How many pairs of a query and a key attend, for one head."""
        return self.t * self.s if self.s else attended_pairs(self.mask, self.t, self.window, self.document)

    @property
    def flops(self) -> float:
        """What `bench._passes.flops` counts."""
        return flops(self.b * self.h, self.d, self.pairs, self.backward)


def _step(b: int, d: int, chip: str = "") -> Case:
    """A step that decodes, of b examples with 8192 keys each."""
    return Case("decode", b, 1, 32, d, "fwd", chip, s=8192, g=8)


def static_cases(chips: Sequence[str] = CHIP_NAMES) -> list[Case]:
    """What is compiled, the most telling first; a program with gradients holds the forward kernel as well."""
    b, t, h = STATIC
    cases = []
    for chip, d in itertools.product(chips, (128, 64, 256)):
        cases += [Case(ask, b, t, h, d, "fwdbwd", chip) for ask in names()]
        cases.append(_step(8, d, chip))
    return cases


def timed_cases() -> list[Case]:
    """What is timed, in order of importance: a run may be cut off at any time."""
    b, h = TIMED
    both = lambda ask, t, d: [Case(ask, b, t, h, d, direction) for direction in DIRECTIONS]
    order = [("causal", 16384, 128), ("plain", 16384, 128)]
    order += [(ask, 16384, 128) for ask in ("alibi", "segments", "softcap", "window", "dropout")]
    order += [("causal", 16384, d) for d in (64, 256)]
    first = [case for one in order for case in both(*one)]
    decoding = [_step(b, 128) for b in (1, 8, 32)]
    order = [("causal", t, 128) for t in (4096, 1024, 32768, 2048, 8192)]
    order += [("bias", 8192, 128), ("user", 16384, 128), ("relative", 16384, 128), ("all", 16384, 128)]
    order += [("plain", 16384, d) for d in (64, 256)]
    order += [(ask, t, 128) for t in (4096, 1024) for ask in ("plain", "alibi", "segments", "window")]
    order += [("causal", t, d) for d in (64, 256) for t in (4096, 1024)]
    order += [(ask, 16384, d) for d in (64, 256) for ask in ("alibi", "segments")]
    return [*first, *decoding, *(case for one in order for case in both(*one))]
