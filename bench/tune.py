"""`python -m bench tune tpu`: the best tile sizes of jattn's TPU kernels, by estimates, with no TPU attached.

Compiles candidates, counts their cycles and keeps the best in the table that the kernels read. An interrupted run
resumes: rows that are in the table stay as they are.
"""

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import _report
from bench._cli import Parser, choices, complain, integers, missing
from bench._tpu_cases import MASKS, SHAPES, WINDOW, Case, attended_pairs
from bench._tpu_chips import CHIPS
from bench._tpu_compile import Compiler

TABLE = Path(__file__).parent.parent / "kernels" / "jattn_kernels" / "tables" / "tpu.json"
DIRECTIONS = ("forward", "backward")  # the names of their kernels have these words
_MEMORY = {"v4": 14, "v5p": 56, "tpu7x": 56}  # MiB for what a backward kernel holds of a chunk; the others have 110
_HELD = 24  # bytes a key and unit of width: k, v, dk, dv in bfloat16 twice, dk and dv in float32

Key = tuple[str, int, int, str, str]
Sizes = dict[str, Any]
Estimate = Callable[[Case, dict[str, Sizes]], dict[str, float]]


def main(arguments: Sequence[str]) -> int:
    """Tune; 2 if the command line is wrong, something is not installed, or nothing compiles."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if absent := missing(["tqdm", "libtpu"]):
        return complain(parser.prog, f"{' and '.join(absent)} not installed: pip install 'jattn[aot,bench]'")
    try:
        rows = {} if options.again else read(options.table)
        options.table.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError, KeyError) as error:
        return complain(parser.prog, f"{type(error).__name__}: {error}")
    chosen = [
        Case(chip, mask, *shape, "fwdbwd")
        for chip, mask, shape in itertools.product(options.chip, options.mask, SHAPES)
        if shape[2] in options.t and shape[3] in options.d and (mask != "window" or shape[2] >= 8 * WINDOW)
    ]
    with Compiler() as compiler:
        failed = tune(chosen, rows, options.table, lambda case, sizes: estimate(compiler, case, sizes))
    print(f"{len(rows)} rows in {options.table}")
    return complain(parser.prog, f"no candidate compiled for {', '.join(failed)}") if failed else 0


def _parser() -> Parser:
    parser = Parser(prog="bench tune", description=__doc__)
    parser.add_argument("platform", choices=("tpu",))
    parser.add_argument("--chip", type=choices(CHIPS), default=tuple(CHIPS), help="default: all")
    parser.add_argument("--t", type=integers, default=[shape[2] for shape in SHAPES], help="lengths, comma-separated")
    parser.add_argument("--d", type=integers, default=[shape[3] for shape in SHAPES], help="widths, comma-separated")
    parser.add_argument("--mask", type=choices(MASKS), default=MASKS, help=f"of {','.join(MASKS)}")
    parser.add_argument("--again", action="store_true", help="forget the table and start over")
    parser.add_argument("--table", type=Path, default=TABLE, metavar="FILE", help="default: the kernels' own")
    return parser


def candidates(case: Case) -> dict[str, list[Sizes]]:
    """What is tried for each pass: tiles that did well somewhere, and for each chip its ways to compute."""
    wide_unit = case.chip in ("v6e", "tpu7x")  # matrix units 256 wide
    small = case.chip == "v4"
    held = max(1024, _MEMORY.get(case.chip, 110) * 2**20 // (_HELD * max(case.d, 128)) // 1024 * 1024)
    grains = (256,) if case.mask == "full" or wide_unit else (128, 256)
    if small:
        tiles = [(512, 1024, 512, 0), (512, 512, 512, 0), (256, 1024, 512, 0)]
    elif case.mask == "window":
        tiles = [(1024, 1024, 512, 512), (512, 512, 512, 0)]
    elif case.t <= 2048:
        tiles = [(1024, 2048, 512, 512), (2048, 2048, 512, 512), (2048, 2048, 2048, 256)]
    else:
        tiles = [(1024, 2048, 512, 512), (1024, 1024, 512, 512), (2048, 2048, 512, 512)]
    options = {"wide": True} if wide_unit else {"newton": True}
    forward = [
        {"query": q, "key": k, "step": step, "rows": rows, "grain": grain, **options}
        for q, k, step, rows in tiles
        for grain in grains
    ]
    tiles = [(1024, 1024, 512), (1024, 1024, 1024 if case.d > 128 else 256)]
    if case.d <= 128:
        tiles.append((2048, 2048, 512))
    if small:
        tiles = [(512, 512, 512), (256, 512, 256)]
    if case.mask == "window":
        tiles[-1] = (512, 512, 512)
    turns = [(True, True), (True, False)] if wide_unit else [(False, False)]
    if case.d < 128 and not wide_unit:
        turns = [(True, False)]
    backward = [
        {"query": q, "key": k, "step": step, "grain": grain, "turned_dq": dq, "turned_dkv": dkv}
        for q, k, step in tiles for grain in grains for dq, dkv in turns
    ]  # fmt: skip
    found = {"forward": forward, "backward": backward}
    for sizes in found.values():
        sizes += [{**x, "scheduler": True} for x in sizes[:2]]
        for x in sizes:
            x["chunk"] = max(x["key"], min(held, case.t) // x["key"] * x["key"])
    return found


def estimate(compiler: Compiler, case: Case, sizes: dict[str, Sizes]) -> dict[str, float]:
    """Milliseconds of each pass at these sizes; empty if they do not compile."""
    walked = case.walked()
    scale = case.b * case.h / (walked.b * walked.h)
    kernels = compiler.count(walked, "jattn", dict(sizes)).get("kernels", {})
    cycles = lambda counts: counts["startup"] + scale * (counts["cycles"] - counts["startup"])
    return {
        direction: 1e3 * sum(cycles(kernels[name]) for name in kernels if direction in name) / CHIPS[case.chip].hertz
        for direction in DIRECTIONS
        if kernels
    }


def tune(chosen: Sequence[Case], rows: dict[Key, dict[str, Any]], table: Path, estimate: Estimate) -> list[str]:
    """Estimate the candidates of every case that is not in the table, and write the table after each.

    Candidates for the two passes are compiled in pairs; where a pair does not compile, each with the other's first.

    Args:
        chosen: the cases.
        rows: the table's, by `key`; added to.
        table: the file.
        estimate: milliseconds of each pass, for a case and the sizes of both.

    Returns:
        The names of the cases for which no candidate compiled.
    """
    failed = []
    wanted = [case for case in chosen if any(key(case, direction) not in rows for direction in DIRECTIONS)]
    progress = _report.progress(wanted)
    for case in progress:
        progress.set_postfix_str(case.name)
        tried = candidates(case)
        found = []
        for n in range(max(map(len, tried.values()))):
            pair = {direction: tried[direction][n % len(tried[direction])] for direction in DIRECTIONS}
            firsts = {direction: tried[direction][0] for direction in DIRECTIONS}
            alone = [{**firsts, direction: sizes} for direction, sizes in pair.items()]
            for sizes in (pair, *alone):
                found.append((sizes, estimate(case, sizes)))
                if found[-1][1]:
                    break
        found = [x for x in found if x[1]]
        if not found:
            failed.append(case.name)
            continue
        for direction in DIRECTIONS:
            sizes, times = min(found, key=lambda one: one[1][direction])
            rows[key(case, direction)] = _row(case, direction, sizes[direction], times[direction])
        _write(table, rows)
    return failed


def key(case: Case, direction: str) -> Key:
    """What a row of the table is found by: chip, d, t, mask, pass."""
    return case.chip, case.d, case.t, case.mask, direction


def _row(case: Case, direction: str, sizes: Sizes, milliseconds: float) -> dict[str, Any]:
    names = ("chip", "d", "t", "mask", "direction")
    heads = case.b * case.h
    return {
        **dict(zip(names, key(case, direction), strict=True)),
        "sizes": sizes,
        "milliseconds": round(milliseconds / heads, 6),
        "pairs": attended_pairs(case),
    }


def read(table: Path) -> dict[Key, dict[str, Any]]:
    """The rows of a table by key; none if there is no file."""
    rows = json.loads(table.read_text()) if table.exists() else []
    return {(row["chip"], row["d"], row["t"], row["mask"], row["direction"]): row for row in rows}


def _write(table: Path, rows: dict[Key, dict[str, Any]]) -> None:
    """All at once, a row a line."""
    draft = table.with_suffix(".draft")
    draft.write_text("[\n" + ",\n".join(json.dumps(rows[one]) for one in sorted(rows)) + "\n]\n")
    draft.replace(table)
