"""What is timed: the cases, their masks, their useful flops and their random inputs.

Axis letters are those of the library: b batch, t query length, s key length, h query heads, g key heads, d width.  The
square cases have s = t and g = h; the named ones are shapes of their own, each for a way of using attention.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bench._passes import DIRECTIONS, flops

LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384)
WIDTHS = (64, 128)
MASKS = ("causal", "full", "window", "segments")
WINDOW = 512  # keys that a query of the window mask attends to: itself and the 511 before it
QUICK = ("causal-t1024-d64-fwdbwd", "full-t1024-d64-fwd", "window-t4096-d64-fwdbwd", "segments-t2048-d128-fwd")

SMALL = ("decode", "small", "pooling", "cross")  # named cases of few query rows or short sequences
NORMALIZERS = ("softmax", "sparsemax", "entmax15")

_ROWS = 16384  # b * t * h of every case, up to rounding: work then grows with t, not with its square
_HEADS = 8
_DOCUMENT = 512  # mean length of a packed document


@dataclass(frozen=True)
class Case:
    """One row of the benchmark: a mask, a shape, and whether the gradients are taken as well.

    `group` names the cases that are not square, "" are those that are; s and g are 0 where they are t and h.
    """

    mask: str
    t: int
    d: int
    direction: str
    b: int
    h: int
    group: str = ""
    s: int = 0
    g: int = 0
    window: int = WINDOW
    score: str = "dot"
    normalizer: str = "softmax"

    @property
    def name(self) -> str:
        """What `--filter` searches, e.g. `causal-t1024-d64-fwdbwd` or `decode-fwd`."""
        return f"{self.group or f'{self.mask}-t{self.t}-d{self.d}'}-{self.direction}"

    @property
    def keys(self) -> int:
        """How many keys each query has before the mask."""
        return self.s or self.t

    @property
    def key_heads(self) -> int:
        return self.g or self.h

    @property
    def backward(self) -> bool:
        return self.direction == "fwdbwd"


class Inputs(NamedTuple):
    """q and the cotangent g of the output, float32 [b, t, h, d]; k and v [b, s, g, d]; document ids, int32 [b, t]."""

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


_NAMED: dict[str, dict[str, Any]] = {
    "decode": {"mask": "full", "t": 1, "s": 8192, "d": 64, "b": 8, "h": 32, "g": 8},  # one token, after a long cache
    "small": {"mask": "full", "t": 64, "d": 64, "b": 64, "h": 8},
    "pooling": {"mask": "full", "t": 1, "s": 40, "d": 64, "b": 512, "h": 8},  # a sentence into a vector
    "cross": {"mask": "full", "t": 16, "s": 4096, "d": 64, "b": 4, "h": 8},
    "window-32k": {"mask": "window", "t": 32768, "d": 64, "b": 1, "h": 1, "window": 128},
    "additive": {"mask": "full", "t": 1024, "d": 64, "b": 1, "h": 1, "score": "additive"},
    **{x: {"mask": "full", "t": 2048, "d": 64, "b": 1, "h": 4, "normalizer": x} for x in NORMALIZERS},
}


def named_cases(directions: Sequence[str] = DIRECTIONS) -> list[Case]:
    """The cases that are not square."""
    return [Case(direction=way, group=group, **sizes) for group, sizes in _NAMED.items() for way in directions]


def _batch_and_heads(t: int) -> tuple[int, int]:
    both = max(1, _ROWS // t)
    return max(1, both // _HEADS), min(_HEADS, both)


def inputs(case: Case) -> Inputs:
    """Standard normal arrays and random documents, the same for the same shape; documents whatever d and h."""
    rng = np.random.default_rng([case.b, case.t, case.h, case.d])
    rows, columns = (case.b, case.t, case.h, case.d), (case.b, case.keys, case.key_heads, case.d)
    q, k, v, g = (rng.standard_normal(shape, np.float32) for shape in (rows, columns, columns, rows))
    return Inputs(q, k, v, g, documents(case.b, case.t, np.random.default_rng([case.b, case.t])))


def documents(b: int, t: int, rng: np.random.Generator) -> np.ndarray:
    """Ids 0, 0, .., 1, 1, .. [b, t] of documents packed into rows, cut at random, of 512 tokens on average."""
    ids = np.zeros((b, t), np.int32)
    for row in ids:
        row[rng.choice(np.arange(1, t), min(t, max(2, t // _DOCUMENT)) - 1, replace=False)] = 1
    return np.cumsum(ids, axis=1, dtype=np.int32)


def dense_mask(case: Case, ids: np.ndarray) -> np.ndarray:
    """The mask as booleans broadcastable to [b, h, t, s], True = attend."""
    i = np.arange(case.t, dtype=np.int32)[:, None]
    j = np.arange(case.keys, dtype=np.int32)[None]
    match case.mask:
        case "causal":
            attend = j <= i
        case "window":
            attend = (j <= i) & (j > i - case.window)
        case "segments":
            return (ids[:, :, None] == ids[:, None, :])[:, None]
        case _:
            attend = np.ones((case.t, case.keys), bool)
    return attend[None, None]


def attended_pairs(case: Case, ids: np.ndarray) -> int:
    """How many (query, key) pairs the mask lets through, summed over the batch, for one head."""
    t = case.t
    match case.mask:
        case "causal":
            return case.b * t * (t + 1) // 2
        case "window":
            w = min(t, case.window)
            return case.b * (t * w - w * (w - 1) // 2)
        case "segments":
            return sum(int(np.square(np.bincount(row), dtype=np.int64).sum()) for row in ids)
        case _:
            return case.b * t * case.keys


def useful_flops(case: Case, ids: np.ndarray) -> float:
    """What `bench._passes.flops` counts."""
    return flops(case.h, case.d, attended_pairs(case, ids), case.backward)
