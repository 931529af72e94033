"""`python -m bench decode`: steps of decoding against what their bytes take, by cache kind, batch and fill.

A step is one query of each of 32 heads, 8 key heads, width 128. On this machine's CPU it is measured, in float32,
beside jax.nn and plain jnp; for TPUs it is estimated in bfloat16, by `python -m bench tpu`'s counter, beside JAX's own
kernels for pages, and for GPUs as `python -m bench gpu --static` estimates. A legend says how to read the table.
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
from jattn_kernels.chips import GPUS, TPUS

from bench import _machine
from bench._cli import Parser, choices, complain, install, integers, missing, positive
from bench._paths import OUT
from bench._report import facts_line, header, line, progress, write_json
from bench.decode import _cpu, _gpu, _report, _tpu
from bench.decode._cases import BATCHES, FILLS, KINDS, PAGES, QUICK, ROOM, Case, cases
from bench.decode._rows import Row
from bench.gpu import _tools
from bench.tpu._compile import Compiler

_CHIPS = (*TPUS, *GPUS)
LEGEND = """\
limit: the keys and values that are seen, and scales, over the memory's bandwidth: a TPU's as published, the CPU's as it
  sums up an array of 256 MiB. x limit: the time over it. tokens/s: of attention alone, over the batch.
Caches: contiguous; paged16, paged64, paged256: pages of so many keys, in no order; int8: with a float32 scale for each
  key and head; window: contiguous, and a query sees 1024 keys.
TPU: the kernels' counted cycles, and what XLA does around them by its bytes over the bandwidth (around). What starts a
  program is not counted. paged_attention, ragged: JAX's kernels, each in its own layout.
CPU: medians of runs in turns after a pause before each; jnp and jax.nn gather pages and multiply int8 out in the step.
GPU: the kernel's counted instructions or its bytes over the bandwidth, whichever takes longer, and what XLA does around
  it by its bytes. It is a bound: to start a kernel takes microseconds, of which nothing is counted (starts: how many).
  Of keys of 8 bits it counts who copies and widens them too. Ampere's kernels and Ada's do not take such."""


def main(
    arguments: Sequence[str],
    *,
    bandwidth: Callable[[], float] = _cpu.bandwidth,
    obstacle: Callable[[], str | None] = _tools.obstacle,
) -> int:
    """Run the benchmark; 1 if a peer's result differs, 2 if the command line is wrong or something is not installed.

    Args:
      arguments: the command line.
      bandwidth: this machine's, in bytes a second, measured when it is called.
      obstacle: why nothing can be compiled for GPUs here, None if it can.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    chips = () if options.no_tpu else options.chips
    needed = ["matplotlib", "tqdm", *(["libtpu"] if any(chip in TPUS for chip in chips) else [])]
    absent = missing(needed)
    if absent:
        hint = install("aot,bench") + (", or choose --no-tpu" if "libtpu" in absent else "")
        return complain(parser.prog, f"{' and '.join(absent)} not installed: {hint}")
    if any(chip in GPUS for chip in chips) and (reason := obstacle()) is not None:
        return complain(parser.prog, reason)
    chosen = [case for case in _chosen(options) if options.filter in case.name]
    if not chosen or (options.no_cpu and options.no_tpu):
        return complain(parser.prog, "no case matches; names look like paged64-b8-fill1024")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return complain(parser.prog, f"{type(error).__name__}: {error}")
    jax.config.update("jax_platforms", "cpu")
    return _run(chosen, options, bandwidth)


def _parser() -> Parser:
    parser = Parser(prog="bench decode", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"only {' and '.join(QUICK)}")
    parser.add_argument("--chips", type=choices(_CHIPS), default=("v5e",), help=f"of {','.join(_CHIPS)}; default: v5e")
    parser.add_argument("--no-cpu", action="store_true", help="nothing is measured")
    parser.add_argument("--no-tpu", action="store_true", help="nothing is estimated")
    parser.add_argument("--kind", type=choices(KINDS), default=KINDS, help=f"of {','.join(KINDS)}")
    parser.add_argument("--b", type=integers, default=BATCHES, help="batches, comma-separated")
    parser.add_argument("--fill", type=integers, default=FILLS, help="keys in the cache, comma-separated")
    parser.add_argument("--n", type=positive, default=ROOM, help=f"room of the cache, default: {ROOM}")
    parser.add_argument("--page", type=integers, default=PAGES, help="keys of a page, comma-separated")
    parser.add_argument("--filter", default="", metavar="SUBSTR", help="cases whose name has it")
    parser.add_argument("--rounds", type=positive, help="runs of each contender (default: what --budget allows)")
    parser.add_argument("--budget", type=float, default=0.5, metavar="SECONDS", help="for each contender of each case")
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="default: bench/out")
    return parser


def _chosen(options: Namespace) -> list[Case]:
    chosen = cases(options.kind, options.b, options.fill, options.n, options.page)
    return [case for case in chosen if case.name in QUICK] if options.quick else chosen


def _run(chosen: Sequence[Case], options: Namespace, bandwidth: Callable[[], float]) -> int:
    compiling = [*_tools.PLUGINS, *_tools.TOOLS.values()] if any(chip in GPUS for chip in options.chips) else []
    facts = _machine.facts(["jattn", "jax", "jaxlib", "libtpu", *compiling])
    text = [facts_line(facts), "", header(_report.COLUMNS)]
    print("\n".join(text))
    rows: list[Row] = []
    bar = progress(chosen)
    with Compiler() as compiler:
        speed = None if options.no_cpu else bandwidth()
        for case in bar:
            bar.set_postfix_str(case.name)
            for row in _rows(case, options, compiler, speed):
                rows.append(row)
                text.append(line(_report.COLUMNS, row))
                bar.write(text[-1])
                sys.stdout.flush()
            document = {"machine": facts, "bandwidth": speed, "complete": case is chosen[-1]}
            write_json(options.out / "decode.json", {**document, "rows": [row.as_json() for row in rows]})
    ending = ["", *(f"{text}\n" for text in [_report.summary(rows)] if text), LEGEND]
    print("\n".join(ending))
    (options.out / "decode.txt").write_text("\n".join([*text, *ending]) + "\n")
    _report.plot(rows, options.out / "decode.png")
    written = [options.out / name for name in ("decode.txt", "decode.json", "decode.png")]
    print(f"\nWritten: {', '.join(str(path) for path in written if path.exists())}")
    wrong = [f"{row.contender} in {row.case.name}" for row in rows if row.error.startswith("WRONG")]
    if wrong:
        print(f"bench decode: WRONG RESULTS: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


def _rows(case: Case, options: Namespace, compiler: Compiler, speed: float | None) -> Iterator[Row]:
    for chip in () if options.no_tpu else options.chips:
        yield from _tpu.estimate(case, chip, compiler.count) if chip in TPUS else _gpu.estimate(case, chip)
    if speed is not None:
        yield from _cpu.measure(case, speed, options.budget, options.rounds)
