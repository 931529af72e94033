"""`python -m bench cpu`: jattn on the CPU beside torch's and jax.nn's attention, in one process, in turns.

Float32, forward and forward + backward: four masks, two widths, t from 256 to 16384; and shapes of their own, for
decoding, small problems, pooling, cross attention, a narrow window, an additive score and the sparse normalisers.
A legend says how to read the table.
"""

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from bench import _machine, _timing
from bench._cli import Missing, Parser, choices, complain, install, integers, missing, positive
from bench._passes import DIRECTIONS
from bench._paths import OUT
from bench._report import facts_line, header, line, number, progress, write_json
from bench.cpu import _memory, _programs, _report
from bench.cpu._cases import LENGTHS, MASKS, QUICK, WIDTHS, Case, cases, named_cases
from bench.cpu._contenders import JATTN, PEERS, Attend, Contender
from bench.cpu._matmul import matmul_gflops
from bench.cpu._measure import Row, measure
from bench.cpu._memory import ATTENDS
from bench.cpu._plot import plot

LEGEND = """\
Times are medians of runs in turns (A B C A B C ...), float32, random data, after a pause before each run; beside them
their quartiles. torch's threads sleep while they wait (OMP_WAIT_POLICY=PASSIVE). GF/s counts the same for all:
4 d for every head and attended (query, key) pair, 3.5 times that with the backward (the gradient of sum(out * g)).
torch/jattn and jax/jattn: the peer's time over jattn's; above 1, jattn is faster. rounds: how many runs of each.
torch: [b, h, t, d] contiguous, is_causal for causal. It has no window or documents: there it gets its fastest form, an
  additive float32 mask [., 1, t, t] made before the clock starts, and does the work of the full square.
jax: its own causal and window arguments; "-" where its [b, h, t, t] scores would take more than 2 GiB, and at least 2
  rounds where the others have at least 5.
max diff: the largest absolute difference of jattn's arrays and a peer's; WRONG names peers further off than 2e-5 of
  their largest value.
Masks: causal; full; window: causal, 512 keys a query; segments: packed documents, 512 tokens each on average.
Named cases: window-32k has 128 keys a query, torch a loop over chunks; additive has jax.lax.map over rows under jax;
  softmax, sparsemax and entmax15 are the normalisers, jattn alone for the last two."""


def main(
    arguments: Sequence[str],
    *,
    jattn: Contender = JATTN,
    products: Callable[[int, bool], Mapping[str, float]] = matmul_gflops,
    attends: Mapping[str, Callable[[Case], Attend]] = ATTENDS,
    missing: Missing = missing,
) -> int:
    """Run the benchmark or, with --memory, the memory table; 1 if a result is wrong, 2 if the command line is.

    Args:
      arguments: the command line.
      jattn: what is timed beside the peers.
      products: (size, with_torch), the speeds of a matrix product.
      attends: what the memory table has a column of.
      missing: which of some modules are not installed.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    needs_torch = "torch" in options.peers and not options.memory
    absent = missing(["matplotlib", "tqdm", *(["torch"] if needs_torch else [])])
    if absent:
        hint = install("bench") + (", or choose --peers jax" if "torch" in absent else "")
        return complain(parser.prog, f"{' and '.join(absent)} not installed: {hint}")
    _timing.wait_passively()
    chosen = [case for case in _chosen(options) if options.filter in case.name]
    if not chosen:
        return complain(parser.prog, "no case matches; names look like causal-t1024-d64-fwdbwd")
    try:
        baseline = options.baseline and jattn_seconds(json.loads(options.baseline.read_text()))
        options.out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError, KeyError) as error:
        return complain(parser.prog, f"{type(error).__name__}: {error}")
    jax.config.update("jax_platforms", "cpu")
    if options.memory:
        return _memory.run(chosen, options.out, attends)
    contenders = [jattn, *(PEERS[name] for name in options.peers)]
    speeds = products(2048, "torch" in options.peers)
    return _time(chosen, contenders, speeds, options, baseline)


def _parser() -> Parser:
    parser = Parser(prog="bench cpu", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few cases, less than a minute")
    parser.add_argument("--no-programs", action="store_true", help="leave out the seconds to trace and to compile")
    parser.add_argument("--memory", action="store_true", help="temporary memory of the compiled programs, not times")
    parser.add_argument("--peers", type=choices(PEERS), default=tuple(PEERS), help="default: torch,jax")
    parser.add_argument("--filter", default="", metavar="SUBSTR", help="cases whose name has it")
    parser.add_argument("--t", type=integers, help="lengths, comma-separated")
    parser.add_argument("--d", type=integers, help="widths, comma-separated")
    parser.add_argument("--mask", type=choices(MASKS), help=f"of {','.join(MASKS)}")
    parser.add_argument("--pass", type=choices(DIRECTIONS), dest="directions", help=f"of {','.join(DIRECTIONS)}")
    parser.add_argument("--rounds", type=positive, help="runs of each contender (default: what --budget allows)")
    parser.add_argument("--budget", type=float, default=1.0, metavar="SECONDS", help="for each contender of each case")
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="default: bench/out")
    parser.add_argument("--baseline", type=Path, metavar="FILE", help="cpu.json of an earlier run: adds was/now")
    return parser


def _chosen(options: Namespace) -> list[Case]:
    directions = options.directions or DIRECTIONS
    if options.memory:
        return _memory.memory_cases(options.t, options.d, options.mask, directions)
    chosen = cases(options.t or LENGTHS, options.d or WIDTHS, options.mask or MASKS, directions)
    if not (options.t or options.d or options.mask):
        chosen += named_cases(directions)
    return [case for case in chosen if case.name in QUICK] if options.quick else chosen


def jattn_seconds(document: Mapping[str, Any]) -> dict[str, float]:
    """jattn's median seconds by case name, from an earlier run's JSON."""
    return {row["name"]: row["median_seconds"][JATTN.name] for row in document["rows"]}


def _time(
    chosen: Sequence[Case],
    contenders: Sequence[Contender],
    speeds: Mapping[str, float],
    options: Namespace,
    baseline: Mapping[str, float] | None,
) -> int:
    names = [one.name for one in contenders]
    columns = _report.columns(names, baseline)
    document = {
        "machine": _machine.facts(["jattn", "jax", "jaxlib", *(["torch"] if "torch" in names else [])]),
        "matmul_2048_gflops": speeds,
    }
    text = [_facts(document), header(columns)]
    print("\n".join(text))
    rows: list[Row] = []
    bar = progress(chosen)
    for case in bar:
        bar.set_postfix_str(case.name)
        rows.append(measure(case, contenders, options.budget, options.rounds))
        text.append(line(columns, rows[-1]))
        bar.write(text[-1])
        sys.stdout.flush()
        write_json(options.out / "cpu.json", {**document, "complete": False, "rows": _as_json(rows)})
    listed = [*_report.findings(rows), *_report.sparse_limits(rows)]
    if not (options.no_programs or options.quick or options.filter or options.t or options.d or options.mask):
        listed += _programs.limits()
    ending = ["", _report.summary(listed), "", LEGEND]
    print("\n".join(ending))
    summary = [one._asdict() for one in listed]
    write_json(options.out / "cpu.json", {**document, "complete": True, "summary": summary, "rows": _as_json(rows)})
    (options.out / "cpu.txt").write_text("\n".join([*text, *ending]) + "\n")
    plot(rows, names, f"float32 attention on {document['machine']['cpu']}", options.out / "cpu.png")
    written = [options.out / name for name in ("cpu.txt", "cpu.json", "cpu.png")]
    print(f"\nWritten: {', '.join(str(path) for path in written if path.exists())}")
    return _verdict(rows)


def _as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [row.as_json() for row in rows]


def _facts(document: Mapping[str, Any]) -> str:
    products = ", ".join(f"{name} {number(speed)}" for name, speed in document["matmul_2048_gflops"].items())
    machine = facts_line(document["machine"])
    return f"{machine}\nfloat32 product of 2048 x 2048 matrices, GFLOP/s: {products}\n"


def _verdict(rows: Sequence[Row]) -> int:
    wrong = [f"{row.case.name} ({', '.join(row.wrong)})" for row in rows if row.wrong]
    if wrong:
        print(f"bench cpu: WRONG RESULTS: jattn disagrees with a peer in {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0
