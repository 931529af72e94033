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
from bench._tpu_cases import CHIP_NAMES, MASKS, Case
from bench._tpu_chips import CHIPS
from bench._tpu_compile import Compiler
from bench._tpu_contenders import Setting

TABLE = Path(__file__).parent.parent / "kernels" / "jattn_kernels" / "tables" / "tpu.json"
LENGTHS = (1024, 2048, 4096, 8192, 16384)  # a length belongs to the class of the next longer one
WIDTHS = (64, 128, 256)
PASSES = {"fwd": "forward", "bwd": "backward"}  # and what the names of their kernels have
BLOCKS = (256, 512, 1024, 2048)
HEADS = 16

Key = tuple[str, int, int, str, str]
Estimate = Callable[[Case, Sequence[int]], dict[str, float]]


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
        Case(chip, mask, 1, HEADS, t, d, "fwdbwd")
        for chip, mask, d, t in itertools.product(options.chip, options.mask, options.d, options.t)
    ]
    with Compiler() as compiler:
        failed = tune(chosen, rows, options.table, lambda case, blocks: estimate(compiler, case, blocks))
    print(f"{len(rows)} rows in {options.table}")
    return complain(parser.prog, f"no candidate compiled for {', '.join(failed)}") if failed else 0


def _parser() -> Parser:
    parser = Parser(prog="bench tune", description=__doc__)
    parser.add_argument("platform", choices=("tpu",))
    parser.add_argument("--chip", type=choices(CHIPS), default=CHIP_NAMES, help=f"default: {','.join(CHIP_NAMES)}")
    parser.add_argument("--t", type=integers, default=LENGTHS, help="lengths, comma-separated")
    parser.add_argument("--d", type=integers, default=WIDTHS, help="widths, comma-separated")
    parser.add_argument("--mask", type=choices(MASKS), default=MASKS, help=f"of {','.join(MASKS)}")
    parser.add_argument("--again", action="store_true", help="forget the table and start over")
    parser.add_argument("--table", type=Path, default=TABLE, metavar="FILE", help="default: the kernels' own")
    return parser


def candidates(case: Case) -> list[tuple[int, ...]]:
    """The tile sizes to try: query and key blocks that the length holds."""
    return [(q, k) for q, k in itertools.product(BLOCKS, BLOCKS) if max(q, k) <= case.t]


def estimate(compiler: Compiler, case: Case, blocks: Sequence[int]) -> dict[str, float]:
    """Milliseconds of each pass at these tile sizes; empty if they do not compile."""
    setting: Setting = {"blocks": list(blocks)}
    walked = case.walked()
    scale = case.b * case.h / (walked.b * walked.h)
    kernels = compiler.count(walked, "jattn", setting).get("kernels", {})
    milliseconds = {
        direction: 1e3
        * scale
        / CHIPS[case.chip].hertz
        * sum(kernels[name]["cycles"] for name in kernels if word in name)
        for direction, word in PASSES.items()
    }
    return milliseconds if kernels else {}


def tune(chosen: Sequence[Case], rows: dict[Key, dict[str, Any]], table: Path, estimate: Estimate) -> list[str]:
    """Estimate the candidates of every case that is not in the table, and write the table after each.

    Args:
        chosen: the cases.
        rows: the table's, by `key`; added to.
        table: the file.
        estimate: milliseconds of each pass, for a case and tile sizes.

    Returns:
        The names of the cases for which no candidate compiled.
    """
    failed = []
    wanted = [case for case in chosen if any(key(case, direction) not in rows for direction in PASSES)]
    progress = _report.progress(wanted)
    for case in progress:
        progress.set_postfix_str(case.name)
        found = [(blocks, times) for blocks in candidates(case) if (times := estimate(case, blocks))]
        if not found:
            failed.append(case.name)
            continue
        for direction in PASSES:
            sizes, times = min(found, key=lambda one: one[1][direction])
            rows[key(case, direction)] = _row(case, direction, sizes, times[direction])
        _report.write_json(table, {"rows": [rows[one] for one in sorted(rows)]})
    return failed


def key(case: Case, direction: str) -> Key:
    """What a row of the table is found by: chip, d, class of t, mask, pass."""
    return case.chip, case.d, case.t, case.mask, direction


def _row(case: Case, direction: str, sizes: Sequence[int], milliseconds: float) -> dict[str, Any]:
    names = ("chip", "d", "t", "mask", "pass")
    return {**dict(zip(names, key(case, direction), strict=True)), "sizes": list(sizes), "ms": round(milliseconds, 4)}


def read(table: Path) -> dict[Key, dict[str, Any]]:
    """The rows of a table by key; none if there is no file."""
    rows = json.loads(table.read_text())["rows"] if table.exists() else []
    return {(row["chip"], row["d"], row["t"], row["mask"], row["pass"]): row for row in rows}
