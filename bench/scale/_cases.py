"""What is predicted: chips, how many of them, lengths, heads, masks, passes and how the sequence is shared out.

Axis letters are those of the library: b batch, t query length (here also the key length), h query heads, g key heads.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from jattn_kernels.chips import TPUS

from bench._passes import DIRECTIONS

CHIP_NAMES = ("v5e", "v5p", "tpu7x", "h100")
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LENGTHS = (2**17, 2**20)
HEADS = ((32, 8), (32, 32))  # of Llama 3 8B; each query head with a key head of its own
MASKS = ("causal", "full")
WIDTH = 128


class Way(NamedTuple):
    """How a sequence is shared out: a strategy of `jattn.parallel`, an order, and whose kernels compute."""

    strategy: str
    order: str
    kernels: str = "jattn"

    @property
    def name(self) -> str:
        of = {"contiguous": "", "zigzag": ", zig-zag"}[self.order]
        return f"{self.kernels + ' ' if self.kernels != 'jattn' else ''}{self.strategy}{of}"


WAYS = (
    Way("ring", "contiguous"),
    Way("ring", "zigzag"),
    Way("all_to_all", "contiguous"),
    Way("ring", "contiguous", "splash"),
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A row: a call on a chip, and how it is shared out over any number of them.

    Attributes:
        heads: whether key heads may lie along an axis of the mesh of their own, as many devices as is best; else all
            devices are along the sequence.
    """

    chip: str
    h: int
    g: int
    t: int
    mask: str
    direction: str
    way: Way
    heads: bool

    @property
    def name(self) -> str:
        """What `--filter` searches, e.g. `v5e-causal-t1048576-h32-g8-fwd-ring, zig-zag-heads`."""
        along = "-heads" if self.heads else ""
        return f"{self.chip}-{self.mask}-t{self.t}-h{self.h}-g{self.g}-{self.direction}-{self.way.name}{along}"


def cases(chips: Sequence[str], lengths: Sequence[int], masks: Sequence[str], directions: Sequence[str]) -> list[Case]:
    """Every combination that makes sense: zig-zag order is for a causal mask, splash's kernels were counted for TPU."""
    every = itertools.product(chips, lengths, HEADS, masks, directions or DIRECTIONS, WAYS, (False, True))
    return [
        Case(chip, h, g, t, mask, direction, way, heads)
        for chip, t, (h, g), mask, direction, way, heads in every
        if (way.order == "contiguous" or mask == "causal") and (way.kernels == "jattn" or chip in TPUS)
    ]
