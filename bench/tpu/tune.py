"""`python -m bench tune tpu`: the best tile sizes of jattn's TPU kernels, by estimates, with no TPU attached.

Compiles candidates, counts their cycles and keeps the best in the table that the kernels read. An interrupted run
resumes: rows that are in the table stay as they are.
"""

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jattn_kernels import tables
from jattn_kernels.chips import MIB, TPUS

from bench._cli import Missing, Parser, choices, complain, install, integers, missing
from bench._paths import ROOT
from bench._report import progress
from bench.tpu._cases import MASKS, SHAPES, WINDOW, Case, attended_pairs
from bench.tpu._compile import Compiler
from bench.tpu._estimate import milliseconds

TABLE = ROOT / "kernels" / "jattn_kernels" / "tables" / "tpu.json"
_CHUNK = 7 / 8  # of the fast memory that a backward kernel is granted, for what it holds of a chunk of keys
_HELD = 24  # bytes a key and unit of width: k, v, dk, dv in bfloat16 twice, dk and dv in float32

Key = tuple[str, int, int, str, str]
Fields = dict[str, Any]
Estimate = Callable[[Case, dict[str, Fields]], dict[str, float]]


def main(arguments: Sequence[str], *, compiler: type[Compiler] = Compiler, missing: Missing = missing) -> int:
    """Tune; 2 if the command line is wrong, something is not installed, or nothing compiles.

    Args:
        arguments: the command line.
        compiler: what compiles and counts.
        missing: which of some modules are not installed.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if absent := missing(["tqdm", "libtpu"]):
        return complain(parser.prog, f"{' and '.join(absent)} not installed: {install('aot,bench')}")
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
    with compiler() as one:
        failed = tune(chosen, rows, options.table, lambda case, sizes: estimate(one, case, sizes))
    print(f"{len(rows)} rows in {options.table}")
    return complain(parser.prog, f"no candidate compiled for {', '.join(failed)}") if failed else 0


def _parser() -> Parser:
    parser = Parser(prog="bench tune tpu", description=__doc__)
    parser.add_argument("--chip", type=choices(TPUS), default=tuple(TPUS), help="default: all")
    parser.add_argument("--t", type=integers, default=[shape[2] for shape in SHAPES], help="lengths, comma-separated")
    parser.add_argument("--d", type=integers, default=[shape[3] for shape in SHAPES], help="widths, comma-separated")
    parser.add_argument("--mask", type=choices(MASKS), default=MASKS, help=f"of {','.join(MASKS)}")
    parser.add_argument("--again", action="store_true", help="forget the table and start over")
    parser.add_argument("--table", type=Path, default=TABLE, metavar="FILE", help="default: the kernels' own")
    return parser


def candidates(case: Case) -> dict[str, list[Fields]]:
    """What is tried for each pass: tiles that did well somewhere, and for each chip its ways to compute."""
    wide_unit = TPUS[case.chip].matrix_side > 128
    small = TPUS[case.chip].granted < 32 * MIB
    held = max(1024, int(_CHUNK * TPUS[case.chip].granted) // (_HELD * max(case.d, 128)) // 1024 * 1024)
    grains = (256,) if case.mask == "full" or wide_unit else (128, 256)
    if small:
        tiles = [(512, 1024, 512, 0), (512, 512, 512, 0), (256, 1024, 512, 0)]
    elif case.mask == "window":
        tiles = [(1024, 1024, 512, 512), (512, 512, 512, 0)]
    elif case.t <= 2048:
        tiles = [(1024, 2048, 512, 512), (2048, 2048, 512, 512), (2048, 2048, 2048, 256)]
    else:
        tiles = [(1024, 2048, 512, 512), (1024, 1024, 512, 512), (2048, 2048, 512, 512)]
        if case.mask == "full":
            tiles += [(1024, 4096, 512, 256), (2048, 4096, 512, 256), (2048, 4096, 512, 512)]
    options = {"wide": True} if wide_unit else {"newton": True}
    forward = [
        {"query": q, "key": k, "step": step, "rows": rows, "grain": grain, **options}
        for q, k, step, rows in tiles
        for grain in grains
    ]
    tiles = [(1024, 1024, 512), (1024, 1024, 1024 if case.d > 128 else 256)]
    tiles.append((2048, 2048, 512 if case.d <= 128 else 1024))
    if small:
        tiles = [(512, 512, 512), (256, 512, 256)]
    if case.mask == "window":
        tiles[-1] = (512, 512, 512)
    transposed = [(True, True), (True, False)] if wide_unit else [(False, False)]
    if case.d < 128 and not wide_unit:
        transposed = [(True, False)]
    backward = [
        {"query": q, "key": k, "step": step, "grain": grain, "transposed_dq": dq, "transposed_dkv": dkv}
        for q, k, step in tiles for grain in grains for dq, dkv in transposed
    ]  # fmt: skip
    by_direction = {"forward": forward, "backward": backward}
    for sizes in by_direction.values():
        sizes += [{**x, "scheduler": True} for x in sizes[:2]]
        for x in sizes:
            x["chunk"] = max(x["key"], min(held, case.t) // x["key"] * x["key"])
    return by_direction


def estimate(compiler: Compiler, case: Case, sizes: dict[str, Fields]) -> dict[str, float]:
    """Milliseconds of each pass, whose kernels' names have its name, at these sizes; empty if they do not compile."""
    walked = case.walked()
    scale = case.b * case.h / (walked.b * walked.h)
    kernels = compiler.count(walked, "jattn", dict(sizes)).get("kernels", {})
    time = lambda name: milliseconds(kernels[name], scale, TPUS[case.chip])
    return {which: sum(time(name) for name in kernels if which in name) for which in tables.PASSES if kernels}


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
    wanted = [case for case in chosen if any(key(case, direction) not in rows for direction in tables.PASSES)]
    bar = progress(wanted)
    for case in bar:
        bar.set_postfix_str(case.name)
        tried = candidates(case)
        timed = []
        for n in range(max(map(len, tried.values()))):
            pair = {direction: tried[direction][n % len(tried[direction])] for direction in tables.PASSES}
            firsts = {direction: tried[direction][0] for direction in tables.PASSES}
            alone = [{**firsts, direction: sizes} for direction, sizes in pair.items()]
            for sizes in (pair, *alone):
                timed.append((sizes, estimate(case, sizes)))
                if timed[-1][1]:
                    break
        timed = [x for x in timed if x[1]]
        if not timed:
            failed.append(case.name)
            continue
        for direction in tables.PASSES:
            sizes, times = min(timed, key=lambda one: one[1][direction])
            rows[key(case, direction)] = _row(case, direction, sizes[direction], times[direction])
        _write(table, rows)
    return failed


def key(case: Case, direction: str) -> Key:
    """What a row of the table is found by: chip, d, t, mask, pass."""
    return case.chip, case.d, case.t, case.mask, direction


def _row(case: Case, direction: str, sizes: Fields, milliseconds: float) -> dict[str, Any]:
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
