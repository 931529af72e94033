"""What a call takes on many chips: the kernels of each step, and what `jattn.parallel.explain` says of the network.

Efficiency is what one device takes for the whole call, by the same estimate, over what all of them take together.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jattn_kernels.chips import CHIPS

from bench.scale._cases import WIDTH, Case
from bench.scale._kernels import milliseconds
from jattn.parallel._cost import Cost, Load, cost

_BYTES = 2  # of a number in bfloat16


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Of a case on so many chips, whose devices are `heads` x `sequence`; None in the place of times not known.

    Attributes:
        compute: milliseconds that the busiest device computes, what it reads and writes between kernels included.
        sent: bytes that a device sends, in all.
        network: milliseconds that this takes over a link.
        hidden: the share of those during which kernels run.
        total: milliseconds.
        efficiency: of all devices.
    """

    chips: int
    heads: int
    sequence: int
    compute: float
    sent: int
    network: float
    hidden: float
    total: float
    efficiency: float


def predictions(case: Case, counts: Sequence[int]) -> list[Prediction]:
    """For each number of chips on which the case can be, the best mesh."""
    predicted = []
    for chips in counts:
        if chips <= (CHIPS[case.chip].linked or chips):
            here = [one for one in _on(case, chips) if one is not None]
            predicted += [max(here, key=lambda one: one.efficiency)] if here else []
    return predicted


def _on(case: Case, chips: int) -> Iterator[Prediction | None]:
    devices = chips * CHIPS[case.chip].devices
    for heads in range(1, (case.g if case.heads else 1) + 1):
        if devices % heads == 0 and case.g % heads == 0 and case.h % heads == 0:
            yield predict(case, chips, heads, devices // heads)


def predict(case: Case, chips: int, heads: int, sequence: int) -> Prediction | None:
    """On a mesh of heads x sequence; None where the strategy cannot, or nothing was counted of the kernels."""
    h, g = case.h // heads, case.g // heads
    if case.way.strategy == "all_to_all" and (h % sequence or g % sequence):
        return None
    passes = {"fwd": ("fwd",), "fwdbwd": ("fwd", "bwd")}[case.direction]
    whole, cost = 0.0, None
    for direction in passes:
        alone = milliseconds(case.way.kernels, case.chip, case.t, case.t, case.mask, direction)
        times = _times(case, sequence, direction)
        if alone is None or times is None:
            return None
        whole += case.h * alone
        one = _cost(case, load(case, heads, sequence), h * times, direction)
        cost = one if cost is None else cost.then(one)
    assert cost is not None
    assert cost.compute is not None
    assert cost.network is not None
    assert cost.hidden is not None
    assert cost.total is not None
    efficiency = whole / (heads * sequence * cost.total)
    return Prediction(
        chips, heads, sequence, cost.compute, cost.sent, cost.network, cost.hidden, cost.total, efficiency
    )


def load(case: Case, heads: int, sequence: int) -> Load:
    """What a device has of a case."""
    own = case.t // sequence * WIDTH * _BYTES
    query, keys = own * case.h // heads, 2 * own * case.g // heads
    return Load(sequence, query, keys, query, _BYTES)


def _cost(case: Case, own: Load, times: np.ndarray, direction: str) -> Cost:
    return cost(case.way.strategy, own, times, CHIPS[case.chip], backward=direction == "bwd")


def _times(case: Case, n: int, direction: str) -> np.ndarray | None:
    """Milliseconds of one head for each device's queries with each device's keys, `[n, n]`; None if not counted."""
    way, own = case.way, case.t // n
    of = lambda rows, columns, mask: milliseconds(way.kernels, case.chip, rows, columns, mask, direction)
    if way.strategy == "all_to_all":
        every = of(case.t, case.t, case.mask)
        return None if every is None else np.full((n, n), every / n**2)
    full = of(own, own, "full")
    if case.mask == "full" or full is None:
        return None if full is None else np.full((n, n), full)
    first, low, high = of(own, own, "causal"), full, 0.0
    if way.order == "zigzag":
        low, high = of(own, own // 2, "full"), of(own // 2, own, "full")
    if first is None or low is None or high is None:
        return None
    me, source = np.indices((n, n))
    return np.where(me == source, first, np.where(source < me, low, high))
