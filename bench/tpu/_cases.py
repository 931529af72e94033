"""What is estimated: chips, shapes, masks and passes, and the targets that were set for them.

Axis letters are those of the library: b batch, t query length (here also the key length), h heads, d width.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench._passes import DIRECTIONS, flops

CHIP_NAMES = ("v5e", "v5p", "v6e", "tpu7x")  # those with targets; v4 can be asked for
SHAPES = ((8, 16, 2048, 128), (1, 16, 16384, 128), (4, 8, 4096, 256), (2, 32, 8192, 64))  # [b, h, t, d]
MASKS = ("full", "causal", "window")
WINDOW = 1024  # keys that a query of the window mask attends to: itself and the 1023 before it
QUICK = ("v5e-full-t2048-d128-fwd", "v5e-causal-t2048-d128-fwd", "v6e-causal-t4096-d256-fwdbwd")

Setting = dict[str, Any]  # of a contender, in a form that JSON keeps

_WINDOW_SHAPE = SHAPES[1]
_WORK = 128 * 2048**2  # b * h * t^2 up to which all heads are walked


@dataclass(frozen=True)
class Case:
    """One row: a chip, a mask, a shape, and whether the gradients are taken as well.

    The direction is `fwd`, `fwdbwd`, or of a part of a call with gradients `lse`, the forward, which keeps the
    logsumexp, or `bwd`, the backward.
    """

    chip: str
    mask: str
    b: int
    h: int
    t: int
    d: int
    direction: str

    @property
    def name(self) -> str:
        """What `--filter` searches, e.g. `v5e-causal-t2048-d128-fwd`."""
        return f"{self.chip}-{self.mask}-t{self.t}-d{self.d}-{self.direction}"

    @property
    def backward(self) -> bool:
        return self.direction == "fwdbwd"

    @property
    def shape(self) -> str:
        """As in the table and on the command line: `8x16x2048x128`."""
        return f"{self.b}x{self.h}x{self.t}x{self.d}"

    @property
    def flops(self) -> float:
        """What `bench._passes.flops` counts."""
        return flops(self.b * self.h, self.d, attended_pairs(self), self.backward)

    @property
    def target(self) -> float | None:
        """The most that jattn's time may be of splash's."""
        match self.mask:
            case "full":
                return 1.0
            case "causal":
                return {2048: 0.80, 4096: 0.85, 16384: 0.95}.get(self.t)
            case _:
                return 0.9 if self.t == _WINDOW_SHAPE[2] else None

    @property
    def utilisation_target(self) -> float | None:
        """The least share of the matrix units' peak that jattn ought to reach."""
        return {"v5p": 0.93, "v5e": 0.85}.get(self.chip) if self.mask == "full" and self.d == 128 else None

    def walked(self) -> "Case":
        """The case with so few heads that walking it takes seconds; an even number, for megacores split them."""
        heads = min(self.b * self.h, max(2, _WORK // self.t**2))
        return replace(self, b=max(1, heads // self.h), h=min(heads, self.h))


def attended_pairs(case: Case) -> int:
    """How many (query, key) pairs the mask lets through for one head."""
    t, w = case.t, min(case.t, WINDOW)
    return {"full": t * t, "causal": t * (t + 1) // 2, "window": t * w - w * (w - 1) // 2}[case.mask]


def cases(
    chips: Sequence[str] = CHIP_NAMES,
    masks: Sequence[str] = MASKS,
    shapes: Sequence[tuple[int, int, int, int]] = SHAPES,
    directions: Sequence[str] = DIRECTIONS,
) -> list[Case]:
    """Every combination; of the window mask only [1, 16, 16384, 128]."""
    return [
        Case(chip, mask, *shape, direction)
        for chip, mask, direction, shape in itertools.product(chips, masks, directions, shapes)
        if mask != "window" or shape == _WINDOW_SHAPE
    ]
