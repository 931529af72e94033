"""What is timed: the cases, their masks, their useful flops and their random inputs.

Axis letters are those of the library: b batch, t query length (here also the key length), h heads, d width.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384)
WIDTHS = (64, 128)
MASKS = ("causal", "full", "window", "segments")
DIRECTIONS = ("fwd", "fwdbwd")
WINDOW = 512  # keys that a query of the window mask attends to: itself and the 511 before it
QUICK = ("causal-t1024-d64-fwdbwd", "full-t1024-d64-fwd", "window-t4096-d64-fwdbwd", "segments-t2048-d128-fwd")

_ROWS = 16384  # b * t * h of every case, up to rounding: work then grows with t, not with its square
_HEADS = 8
_DOCUMENT = 512  # mean length of a packed document
_BACKWARD = 3.5  # forward and backward flops over forward's: the backward has five products, the forward two


@dataclass(frozen=True)
class Case:
    """One row of the benchmark: a mask, a shape, and whether the gradients are taken as well."""

    mask: str
    t: int
    d: int
    direction: str
    b: int
    h: int

    @property
    def name(self) -> str:
        """What `--filter` searches, e.g. `causal-t1024-d64-fwdbwd`."""
        return f"{self.mask}-t{self.t}-d{self.d}-{self.direction}"

    @property
    def backward(self) -> bool:
        return self.direction == "fwdbwd"


class Inputs(NamedTuple):
    """q, k, v and the cotangent g of the output, float32 [b, t, h, d]; document ids, int32 [b, t]."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    g: np.ndarray
    ids: np.ndarray


def cases(
    lengths: Sequence[int] = LENGTHS,
    widths: Sequence[int] = WIDTHS,
    masks: Sequence[str] = MASKS,
    directions: Sequence[str] = DIRECTIONS,
) -> list[Case]:
    """Every combination, with b and h shrinking as t grows: b * t * h stays at 16384 up to t = 16384."""
    return [
        Case(mask, t, d, direction, *_batch_and_heads(t))
        for mask, direction, t, d in itertools.product(masks, directions, lengths, widths)
    ]


def _batch_and_heads(t: int) -> tuple[int, int]:
    both = max(1, _ROWS // t)
    return max(1, both // _HEADS), min(_HEADS, both)


def inputs(case: Case) -> Inputs:
    """Standard normal arrays and random documents, the same for the same shape; documents whatever d and h."""
    rng = np.random.default_rng([case.b, case.t, case.h, case.d])
    q, k, v, g = rng.standard_normal((4, case.b, case.t, case.h, case.d), np.float32)
    return Inputs(q, k, v, g, documents(case.b, case.t, np.random.default_rng([case.b, case.t])))


def documents(b: int, t: int, rng: np.random.Generator) -> np.ndarray:
    """Ids 0, 0, .., 1, 1, .. [b, t] of documents packed into rows, cut at random, of 512 tokens on average."""
    ids = np.zeros((b, t), np.int32)
    for row in ids:
        row[rng.choice(np.arange(1, t), min(t, max(2, t // _DOCUMENT)) - 1, replace=False)] = 1
    return np.cumsum(ids, axis=1, dtype=np.int32)


def dense_mask(case: Case, ids: np.ndarray) -> np.ndarray:
    """The mask as booleans broadcastable to [b, h, t, t], True = attend."""
    i = np.arange(case.t, dtype=np.int32)[:, None]
    j = i.T
    match case.mask:
        case "causal":
            attend = j <= i
        case "window":
            attend = (j <= i) & (j > i - WINDOW)
        case "segments":
            return (ids[:, :, None] == ids[:, None, :])[:, None]
        case _:
            attend = np.ones((case.t, case.t), bool)
    return attend[None, None]


def attended_pairs(case: Case, ids: np.ndarray) -> int:
    """How many (query, key) pairs the mask lets through, summed over the batch, for one head."""
    t = case.t
    match case.mask:
        case "causal":
            return case.b * t * (t + 1) // 2
        case "window":
            w = min(t, WINDOW)
            return case.b * (t * w - w * (w - 1) // 2)
        case "segments":
            return sum(int(np.square(np.bincount(row), dtype=np.int64).sum()) for row in ids)
        case _:
            return case.b * t * t


def useful_flops(case: Case, ids: np.ndarray) -> float:
    """4 d flops for every head and attended pair, 3.5 times that with the backward: the same count for everybody."""
    return 4.0 * case.h * case.d * attended_pairs(case, ids) * (_BACKWARD if case.backward else 1.0)
