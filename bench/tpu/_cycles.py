"""How many cycles a compiled TPU kernel takes: a walk over its final bundles.

The compiler has scheduled everything: a bundle issues in one cycle unless the core stalls. The walk follows the scalar
control flow from the first bundle to the last, every iteration of every loop, and counts bundles. Two kinds of stall
are added: waiting for a DMA, where all DMAs share the main memory's bandwidth and follow each other; and a matrix unit
that is offered products faster than it takes them. Not modelled: bank conflicts, instruction fetch, refresh, two cores
in each other's way, semaphores other than those of DMAs, stalls of other units.

How good it is: `python -m bench tpu --published` holds estimates against every time of splash attention in tokamax's
tuning cache, all of them on 7x, and README.md here keeps what came of it. From 2048 keys on they are near; the shorter
the sequence, the more they flatter. Nothing is known of other chips: there, compare estimates with each other alone.
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, field

import numpy as np
from jattn_kernels.chips import Tpu

from bench.tpu._bundles import Bundle, Instruction, Listing
from bench.tpu._scalar import ScalarCore, Value, WalkError

MODEL = 1  # raise it whenever the same dump gets another estimate: estimates are kept by it
DMA_LATENCY = 600  # cycles from a DMA's last byte leaving to its flag being seen: a guess
QUEUE = 64  # cycles of work that a matrix unit may have waiting before the next product stalls the core: a guess
LIMIT = 500_000_000  # cycles, many times those of the longest kernel
_ROWS = 16  # of bfloat16, that one `vmatmul` feeds to a matrix unit


@dataclass(frozen=True)
class Assumed:
    """What the walk takes a chip to be, beyond the table of chips.

    Attributes:
        delay_slots: bundles that are still issued after a taken branch.
        granule: bytes in a unit of a DMA's size.
        clock: cycles a second where they are not the table's. On tpu7x estimates come near to published times at 1.75
            GHz; at 2.2, which its published peak asks for, they would be a fifth below.
    """

    delay_slots: int = 4
    granule: int = 32
    clock: float | None = None


ASSUMED = {
    "v4": Assumed(delay_slots=1, granule=512),
    "v5e": Assumed(),
    "v5p": Assumed(),
    "v6e": Assumed(),
    "tpu7x": Assumed(delay_slots=6, clock=1.75e9),
}


def clock(chip: Tpu) -> float:
    """Cycles a second that estimates are made with."""
    return ASSUMED[chip.name].clock or chip.clock


def feed(chip: Tpu) -> int:
    """Cycles for which one bfloat16 `vmatmul` keeps a matrix unit busy; float32 operands take half of it."""
    return round(_ROWS * 2 * chip.matrix_side**2 * chip.matrix_units / chip.flops["bfloat16"])


@dataclass(frozen=True)
class Cycles:
    """What one run of a kernel takes on one core.

    Attributes:
        cycles: all of them.
        startup: those before the first product, which a kernel spends once however long its grid.
        dma_stall, matrix_stall: cycles in which the core waited, part of `cycles`.
        dma_bytes: moved between main memory and the core.
        products: `vmatmul` instructions issued.
    """

    cycles: int
    startup: int
    dma_stall: int
    matrix_stall: int
    dma_bytes: int
    products: int


def total(counts: Iterable[Cycles]) -> Cycles:
    """What several runs of a kernel take, one after the other."""
    return Cycles(*map(sum, zip(*map(astuple, counts), strict=True)))


def count(listing: Listing, chip: Tpu, operands: Mapping[int, np.ndarray] | None = None, limit: int = LIMIT) -> Cycles:
    """Walk a kernel's bundles.

    Args:
        listing: its bundles.
        chip: the chip that they were compiled for.
        operands: values of the integer operands on which the control flow depends, by operand index.
        limit: cycles after which the walk is taken to go round in circles.

    Raises:
        WalkError: the control flow depends on something unknown, or does not end.
    """
    return _Execution(listing, chip, ScalarCore(operands or {})).run(limit)


@dataclass
class _Execution:
    """A core that works off a kernel: how far it is, and what it waits for."""

    listing: Listing
    chip: Tpu
    core: ScalarCore
    cycle: int = 0
    startup: int | None = None
    dma_stall: int = 0
    matrix_stall: int = 0
    dma_bytes: int = 0
    products: int = 0
    memory_free: float = 0.0  # when the DMAs under way will be done
    flags: dict[Value, deque[float]] = field(default_factory=lambda: defaultdict(deque))
    units_free: dict[int, float] = field(default_factory=lambda: defaultdict(float))

    assumed: Assumed = field(init=False)
    feed: int = field(init=False)

    def __post_init__(self):
        self.assumed, self.feed = ASSUMED[self.chip.name], feed(self.chip)

    def run(self, limit: int) -> Cycles:
        bundles = self.listing.bundles
        plain = _stretches(bundles)
        at, target, slots = 0, -1, 0
        while at < len(bundles):
            if self.cycle > limit:
                raise WalkError(f"no end after {limit} cycles")
            skip = min(plain[at], slots) if slots else plain[at]
            if skip:
                self.cycle += skip
                at += skip
                branch = None
            else:
                skip = 1
                branch = self._issue(bundles[at])
                at += 1
            if slots:
                slots -= skip
                if slots == 0:
                    at = target
            elif branch is not None:
                target, slots = branch, self.assumed.delay_slots
        return Cycles(
            self.cycle,
            self.cycle if self.startup is None else self.startup,
            self.dma_stall,
            self.matrix_stall,
            self.dma_bytes,
            self.products,
        )

    def _issue(self, bundle: Bundle) -> int | None:
        """Issue a bundle; where to branch to, if it branches."""
        self.cycle += 1
        for unit, share in bundle.products:
            self._product(unit, share)
        branch = None
        for instruction in bundle.scalar:
            op = instruction.op
            if op.startswith("sbr"):
                branch = self._branch(instruction)
            elif op.startswith("dma."):
                self._dma(instruction)
            elif op == "sst":
                self.core.store(instruction)
            else:
                self.core.execute(instruction)
        return branch

    def _product(self, unit: int, share: float) -> None:
        if self.startup is None:
            self.startup = self.cycle
        start = max(float(self.cycle), self.units_free[unit])
        late = int(start - QUEUE) - self.cycle
        if late > 0:
            self.matrix_stall += late
            self.cycle += late
        self.units_free[unit] = start + self.feed * share
        self.products += 1

    def _branch(self, instruction: Instruction) -> int | None:
        if instruction.op != "sbr.rel":
            raise WalkError(f"not a branch that can be followed: {instruction.text!r}")
        if not self.core.must_hold(instruction):
            return None
        return self.listing.regions[int(instruction.args[0])]

    def _dma(self, instruction: Instruction) -> None:
        if not self.core.must_hold(instruction):
            return
        if instruction.op == "dma.done.wait":
            self._wait(self.core.value(instruction.args[0]))
            return
        source, size, target, flag = (self.core.value(one) for one in instruction.args[:4])
        if instruction.op.endswith("_to_smem"):
            self.core.fill(source, target)
        if not isinstance(size, int):
            raise WalkError(f"a DMA of unknown size: {instruction.text!r}")
        arrival = float(self.cycle)
        if "hbm" in instruction.op:
            self.dma_bytes += size * self.assumed.granule
            start = max(self.memory_free, self.cycle)
            arrival = start + size * self.assumed.granule * clock(self.chip) / (self.chip.bandwidth / self.chip.cores)
            self.memory_free = arrival
        self.flags[flag].append(arrival + DMA_LATENCY)

    def _wait(self, flag: Value) -> None:
        if self.flags[flag]:
            late = int(self.flags[flag].popleft()) - self.cycle
            if late > 0:
                self.dma_stall += late
                self.cycle += late


def _stretches(bundles: tuple[Bundle, ...]) -> list[int]:
    """For every bundle, how many plain ones follow each other from there."""
    lengths = [0] * (len(bundles) + 1)
    for at in reversed(range(len(bundles))):
        lengths[at] = lengths[at + 1] + 1 if bundles[at].plain else 0
    return lengths
