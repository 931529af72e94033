"""What kernels take for a piece of queries and keys on one device, from what was counted of their programs.

jattn's on TPU: the forward pass is what `jattn.explain` estimates, from the cycles that were counted when tile sizes
were chosen; the backward one is to it as the two were counted there.  splash's: what `python -m bench tpu` has counted
and kept, for the nearest length.  An H100's: what `python -m bench gpu --static` has recorded, of products and
instructions.
"""

import functools
import json

from jattn_kernels import tables
from jattn_kernels.chips import GPUS

from bench._cli import Missing, missing
from bench._paths import ROOT
from bench.scale._cases import WIDTH
from bench.tpu._cases import Case as Counted
from bench.tpu._contenders import PEERS
from bench.tpu._estimate import Kept, estimate
from bench.tpu.command import KEPT

STATIC = ROOT / "bench" / "results" / "h100_static" / "static.json"


@functools.cache
def milliseconds(kernels: str, chip: str, rows: int, columns: int, mask: str, direction: str) -> float | None:
    """Of one head, forward ("fwd") or backward ("bwd"); None where nothing was counted."""
    if kernels == "splash":
        return _of_splash(chip, rows, columns, mask, direction)
    if chip in GPUS:
        return _recorded(rows, columns, mask, direction)
    forward = _explained(chip, rows, columns, mask)
    if direction == "fwd":
        return forward
    entries = [tables.find(chip, WIDTH, max(rows, columns), mask, x).entry for x in tables.PASSES]
    each = [x.milliseconds / x.pairs for x in entries]
    return forward * each[1] / each[0]


def _explained(chip: str, rows: int, columns: int, mask: str) -> float:
    import jax

    import jattn

    of = lambda n: jax.ShapeDtypeStruct((1, n, 1, WIDTH), "bfloat16")
    plan = jattn.explain(
        of(rows), of(columns), of(columns), mask=jattn.masks.causal() if mask == "causal" else None, device=chip
    )
    assert plan.milliseconds is not None
    return plan.milliseconds


def pairs(rows: int, columns: int, mask: str) -> int:
    """How many of a query and a key attend; a causal piece is square."""
    return rows * (rows + 1) // 2 if mask == "causal" else rows * columns


def _of_splash(chip: str, rows: int, columns: int, mask: str, direction: str) -> float | None:
    lengths = sorted((2048, 16384), key=lambda n: max(n, max(rows, columns)) / min(n, max(rows, columns)))
    each = {x: _kept(chip, lengths[0], mask, x) for x in ("fwd", "fwdbwd")}
    if each["fwd"] is None or each["fwdbwd"] is None:
        return None
    time = each["fwd"] if direction == "fwd" else each["fwdbwd"] - each["fwd"]
    return time * pairs(rows, columns, mask)


@functools.cache
def _kept(chip: str, t: int, mask: str, direction: str, missing: Missing = missing) -> float | None:
    """Milliseconds of splash's kernels for one pair of one head, at the best of the settings that are kept.

    Counts are kept for the versions that were counted, so where those are not installed there is None.
    """
    if missing(["tokamax", "libtpu"]):
        return None
    b = {2048: 8, 16384: 1}[t]
    case, peer, kept = Counted(chip, mask, b, 16, t, WIDTH, direction), PEERS["splash"], Kept(KEPT)
    best = estimate(case, peer, lambda part, setting: kept.known(part, peer, setting))
    return None if best.milliseconds is None else best.milliseconds / (b * 16 * pairs(t, t, mask))


def _recorded(rows: int, columns: int, mask: str, direction: str) -> float:
    """By the kernels of one recorded call: forward, or the two of the backward pass."""
    total = 0.0
    for row in json.loads(STATIC.read_text())["rows"]:
        case = row["case"]
        wanted = {"full": "plain", "causal": "causal"}[mask], WIDTH, "jattn"
        if (case["ask"], case["d"], row["contender"]) == wanted and (row["role"] == "forward") == (direction == "fwd"):
            counted = case["b"] * case["h"] * pairs(case["t"], case["t"], mask)
            total += row["estimate"]["milliseconds"] * pairs(rows, columns, mask) / counted
    return total
