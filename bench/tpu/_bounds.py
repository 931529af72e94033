"""Which settings of splash need not be compiled, because they cannot be the fastest: the on-chip memory is too small
for them, or a sibling's count says it.

Siblings are counts that differ in one thing: in mask, direction, chip, or in what a setting says beside its tiles. A
kernel with a mask visits fewer tiles and spends more on each of them than without, on a window's more than on a causal
mask's; one that keeps the logsumexp does more than one that does not; two chips of one generation differ little; what
lies transposed saves little, but in one count. The factors lie below those of every pair of siblings in `kept.json`;
`tests/bench/tpu/test_bounds.py` holds them to it, and prints by how much.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from jattn_kernels.chips import MIB

from bench.tpu._cases import WINDOW, Case, Setting

Reply = Mapping[str, Any]
Known = Callable[[Case, Setting], Reply | None]

_WITH_LSE = {"full": 1.0, "causal": 1.01, "window": 1.04}  # of the forward without
_ALONE = 0.9  # more, where one tile holds all keys: the compiler orders what stands before and behind it anew
_WIDER = {
    "causal": ("full", {"fwd": 1.01, "lse": 1.03, "bwd": 1.01}),
    "window": ("causal", {"fwd": 1.03, "lse": 1.05, "bwd": 1.7}),
}
# Of two cores each takes half of a forward's heads; splash's backward runs on one.
_CHIPS = {
    "v5p": ("v5e", 0.475, {"full": 0.98, "causal": 0.93, "window": 0.75}),
    "tpu7x": ("v6e", 0.95, {"full": 0.88, "causal": 0.78, "window": 0.6}),
}
_TRANSPOSED = 0.75  # of what nothing lies transposed for
_UNSCHEDULED = 0.75  # of what the scheduler orders

_LANES = 128
_UNASKED = {"v4": 16 * MIB, "v5e": 16 * MIB, "v5p": 16 * MIB, "v6e": 32 * MIB, "tpu7x": 32 * MIB}  # as chips.py says


class Sibling(NamedTuple):
    """A count from which something follows for another.

    Attributes:
        part: which.
        setting: of that part.
        factor: the share of the cycles there that it takes here at least.
        memory: whether too little memory there is too little here.
    """

    part: Case
    setting: Setting
    factor: float
    memory: bool


def siblings(part: Case, setting: Setting) -> Iterator[Sibling]:
    """Those from which something follows for a setting of a part."""
    alone = _ALONE if setting["tiles"][1] == part.t and part.direction != "bwd" else 1.0
    if part.direction == "lse":
        yield Sibling(replace(part, direction="fwd"), setting, alone * _WITH_LSE[part.mask], True)
    if part.mask in _WIDER:
        mask, factors = _WIDER[part.mask]
        wider = replace(part, mask=mask)
        visited = _visited(part, setting) / _visited(wider, setting)
        yield Sibling(wider, setting, factors[part.direction] * visited, False)
    if part.chip in _CHIPS:
        chip, forward, backward = _CHIPS[part.chip]
        factor = backward[part.mask] if part.direction == "bwd" else alone * forward
        yield Sibling(replace(part, chip=chip), setting, factor, chip == "v5e")
    if setting["transposed"]:
        yield Sibling(part, {**setting, "transposed": ""}, _TRANSPOSED, False)
    if not setting["scheduler"]:
        yield Sibling(part, {**setting, "scheduler": True}, _UNSCHEDULED, True)


def least(part: Case, setting: Setting, known: Known) -> float:
    """The cycles that a setting takes at least; infinite where its siblings say that it has too little memory."""
    bounds = [0.0]
    for sibling in siblings(part, setting):
        reply = known(sibling.part, sibling.setting)
        if reply is None:
            there = least(sibling.part, sibling.setting, known)
            bounds.append(sibling.factor * there if there < math.inf or sibling.memory else 0.0)
        elif "error" not in reply:
            bounds.append(sibling.factor * cycles(part, reply))
        elif sibling.memory:
            bounds.append(math.inf)
    return max(bounds)


def hopeless(part: Case, setting: Setting, settings: Sequence[Setting], known: Known) -> bool:
    """Whether a setting needs too much memory, or takes at least as long as the fastest of those that are known."""
    if memory(part, setting) > _UNASKED[part.chip]:
        return True
    replies = (known(part, one) for one in settings)
    times = [cycles(part, reply) for reply in replies if reply is not None and "error" not in reply]
    return bool(times) and least(part, setting, known) >= min(times)


def memory(part: Case, setting: Setting) -> int:
    """Bytes that a kernel of splash holds at least: its blocks of bfloat16 twice, so that one is copied while the other
    is worked on, its accumulators and the scores of a step in float32."""
    query, key, step = setting["tiles"]
    width = part.d if setting["transposed"] else max(part.d, _LANES)
    if part.direction == "bwd":  # of queries q and dout; of keys k, v, dk and dv, and the sums of the last two
        return 2 * 2 * (2 * query + 4 * key) * width + 2 * 4 * key * width + 4 * query * step
    # of queries q and out, the sum of the latter, the row's maximum and sum; of keys k and v
    return 2 * 2 * (2 * query + 2 * key) * width + 4 * query * (width + 2 * _LANES) + 4 * query * step


def cycles(part: Case, reply: Reply) -> float:
    """Of the kernels of the part's direction: a backward's program has a forward kernel too."""
    kernels = reply["kernels"].items()
    return sum(counts["cycles"] for name, counts in kernels if ("_fwd_" in name) == (part.direction != "bwd"))


def _visited(part: Case, setting: Setting) -> int:
    """Pairs in the tiles that hold a pair that the mask lets through; splash works on all of a tile or on none."""
    query, key, _ = setting["tiles"]
    first_query, first_key = np.arange(0, part.t, query)[:, None], np.arange(0, part.t, key)
    visited = (first_key <= first_query + query - 1) | (part.mask == "full")
    if part.mask == "window":
        visited &= first_key + key > first_query - (WINDOW - 1)
    return int(visited.sum()) * query * key
