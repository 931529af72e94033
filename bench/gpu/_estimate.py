"""From instructions to a time that a kernel cannot beat: what each unit of a multiprocessor needs for its tiles.

The units are assumed to work beside one another, without ever waiting: the slowest alone is the estimate.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from jattn_kernels.chips import Gpu

from bench.gpu._cases import Case
from bench.gpu._contenders import FORWARD, KEYS, PRODUCTS, Contender, Role
from bench.gpu._kernels import CompiledKernel
from bench.gpu._sass import Loop
from bench.gpu._terms import tiles

ROWS = 64  # the tables' numbers are for tiles of so many rows
_BYTES = 2  # of a number
_WARPS = 4
_WARP = 32
_UNITS = {
    "special": (("special",), 16),
    "alu": (("integer", "compare"), 64),
    "float": (("float", "multiply"), None),
}
"""By unit, its pipes and its results a cycle and multiprocessor: CUDA's programming guide, throughput of native
instructions, 8.0 to 10.0; None stands for as many as the chip multiplies and adds float32."""


@dataclass(frozen=True)
class TileCost:
    """What a tile of the size that a table is in costs: 64 x 128 scores forward, 64 x 64 backward.

    Attributes:
        instructions: of one warp of the four that share the tile.
        pipes: of these, how many go to each pipe.
        cycles: by unit, what the multiprocessor needs: `tensor`, `issue`, and those of `_UNITS`.
    """

    instructions: float
    pipes: Mapping[str, float]
    cycles: Mapping[str, float]


@dataclass(frozen=True)
class Estimate:
    """A kernel's tiles, and its milliseconds where the role is known.

    Attributes:
        rows, columns: of the tile of scores that four warps, one on each quarter of a multiprocessor, compute in one
            turn of the loop.
        full, partial: the cheapest hot loop and the dearest, which may be one.
        bound: the unit that needs most, `memory` where a step that decodes waits for its keys and values.
        milliseconds: of all visited tiles, spread evenly over the multiprocessors.
    """

    rows: int
    columns: int
    full: TileCost
    partial: TileCost
    bound: str
    milliseconds: float


def tile_columns(role: Role) -> int:
    """Of the tile that tables are in."""
    return 128 if role == FORWARD else 64


def scores(loop: Loop, role: Role, d: int) -> float:
    """How many scores four warps compute in one turn of a loop, by its products or by what it reads of them.

    From tensor memory a backward reads the scores and the weights' gradients.  A forward reads the scores, and writes
    the weights in half as many bits; if it changes the sum there, it reads and writes that as well.
    """
    of_d, of_e = PRODUCTS[role]
    if loop.products:
        return _WARPS * loop.products / ((of_d + of_e) * d)
    read = loop.loaded / 2 if role != FORWARD else 2 * (loop.loaded - loop.stored) if loop.stored else loop.loaded
    return _WARPS * _WARP * read


def role_of(contender: Contender, kernel: CompiledKernel, place: int, d: int) -> Role | None:
    """What the place-th kernel of a program computes; None if nobody knows.

    JAX lowers kernels that do not depend on each other in any order.  Where names do not say which is which, the number
    of products does: the columns of a tile come out as a power of two for the right one alone.
    """
    roles = contender.may_be(kernel.name, place)
    loops = [loop for loop in kernel.loops if loop.products]
    columns = lambda role: max(scores(loop, role, d) for loop in loops) / ROWS
    fits = lambda role: columns(role) > 0 and math.log2(columns(role)).is_integer()
    return next((role for role in roles if loops and fits(role)), roles[0] if roles else None)


def estimate(kernel: CompiledKernel, role: Role, case: Case, chip: Gpu, read: float | None = None) -> Estimate | None:
    """What a kernel takes for a case; None where no hot loop says how many scores it computes.

    `read`: bytes of keys and values that a step of decoding reads, if they are not of 16 bits.
    """
    loops = [loop for loop in kernel.loops if scores(loop, role, case.d)]
    if not loops:
        return None
    each = lambda loop: loop.instructions / scores(loop, role, case.d)
    cheapest, dearest = min(loops, key=each), max(loops, key=each)
    rows = 128 if chip.capability[0] == 10 else 64
    columns = max(1, round(scores(cheapest, role, case.d) / rows))
    full, partial = (_tile(loop, role, case.d, chip) for loop in (cheapest, dearest))
    computing = max(1, kernel.threads // 128 - 1)  # the warpgroups but one, which copies
    if rows == 128 and role == KEYS:  # the warpgroups have the same rows, and every other tile of them
        computing = 1
    if case.s:  # the queries of a key head are in one tile, and every tile of its keys has one
        counts, lines = (-(-case.s // columns), 0), case.b * case.key[2]
    else:
        counts = tiles(case.mask, case.t, rows * computing, columns, case.window, case.document)
        lines = case.b * case.h * computing
    share = lines * rows * columns / (ROWS * tile_columns(role))
    totals = {unit: share * (counts[0] * full.cycles[unit] + counts[1] * partial.cycles[unit]) for unit in full.cycles}
    if case.s:
        totals["issue"] += lines * counts[0] * kernel.copying  # four warps copy, one on each quarter
        read = 2 * _BYTES * math.prod(case.key) if read is None else read
        totals["memory"] = read / chip.bandwidth * chip.clock * chip.cores
    bound = max(totals, key=lambda unit: totals[unit])
    return Estimate(rows, columns, full, partial, bound, 1e3 * totals[bound] / chip.cores / chip.clock)


def _tile(loop: Loop, role: Role, d: int, chip: Gpu) -> TileCost:
    of_d, of_e = PRODUCTS[role]
    wanted = ROWS * tile_columns(role)
    scale = wanted / scores(loop, role, d)
    pipes = {pipe: scale * count for pipe, count in loop.pipes.items()}
    instructions = scale * loop.instructions
    cycles = {
        "tensor": 2 * (of_d + of_e) * d * wanted / chip.flops["bfloat16"],
        "issue": instructions,  # each quarter issues an instruction of one of its warps a cycle
        **{
            unit: sum(pipes.get(pipe, 0) for pipe in fed) * _WARP * _WARPS / (lanes or chip.flops["float32"] / 2)
            for unit, (fed, lanes) in _UNITS.items()
        },
    }
    return TileCost(instructions, pipes, cycles)
