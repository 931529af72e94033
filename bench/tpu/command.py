"""`python -m bench tpu`: estimated times of jattn's TPU kernels beside splash attention's, with no TPU attached.

bfloat16, forward and forward + backward, on v5e, v5p, v6e and 7x (and v4, if asked).
A legend says how to read the table.
"""

import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from jattn_kernels.chips import TPUS

from bench import _machine
from bench._cli import Missing, Parser, choices, complain, install, missing
from bench._passes import DIRECTIONS
from bench._paths import OUT, ROOT
from bench._report import facts_line, header, line, progress, write_json
from bench.tpu import _report, _spread
from bench.tpu._bounds import Reply
from bench.tpu._cases import CHIP_NAMES, MASKS, QUICK, SHAPES, Case, Setting, cases
from bench.tpu._compile import Compiler
from bench.tpu._contenders import JATTN, PEERS, TOKAMAX, Contender
from bench.tpu._estimate import Estimate, Kept, estimate, versions
from bench.tpu._published import Published, published
from bench.tpu._report import Row

KEPT = Path(__file__).parent / "kept.json"  # in the repository: the peer's kernels change with its version alone
LEGEND = """\
Nothing ran on a TPU: the TPU compiler made each kernel's final instruction bundles, and the benchmark walked them and
added stalls for DMAs and matrix units. The table above says how near that comes to the times of splash in tokamax's
tuning cache; of chips that are not in it nothing is known. Differences smaller than that spread mean nothing.
ms: all Pallas kernels of the pass. Where a walk of every head would be long, fewer are compiled and walked (at least
  two; megacores split them), and the cycles after the first product are scaled to b * h.
util: useful flops over the peak of the matrix units; 4 d flops for every head and attended pair, 3.5 times that with
  the backward, the same for all. On v6e and 7x a product 128 wide can use half of the units.
+ XLA: the kernels and what the rest of the program takes at least, its bytes over the bandwidth, in ms; then jattn's
  over splash's. Each is given its own layout: jattn [b, t, h, d], which XLA transposes to [b, h, t, d] and back; splash
  [b * h, t, d], so that nothing is transposed for it but what its setting asks for. From [b, t, h, d], as it is timed
  in the cache, splash would need the same transposes as jattn.
ratio: jattn's ms over splash's; below 1, jattn is faster. splash: tokamax's kernel at the best of the settings that are
  counted, forward and backward each at its own best, causal and window with its own mask tables. Its settings: those
  of tokamax's tuning cache and tiles of 4096, a forward with use_experimental_scheduler both ways, and eight more for
  every mask. Not compiled are those that cannot be the best by counts that differ in one thing: the mask, the
  logsumexp, the chip, what lies transposed, the scheduler.
  What does not fit the on-chip memory that the compiler gives a kernel unasked is out.
v4, v5p: one chip with two cores. 7x: one of a chip's two cores, which is one JAX device.
Masks: full; causal; window: causal, 1024 keys a query."""


def main(
    arguments: Sequence[str],
    *,
    compiler: type[Compiler] = Compiler,
    missing: Missing = missing,
    versions: Callable[[str], str] = versions,
) -> int:
    """Run the estimates; 2 if the command line is wrong or something is not installed.

    Args:
        arguments: the command line.
        compiler: what compiles and counts.
        missing: which of some modules are not installed.
        versions: as `Kept` takes it.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.check:
        return subprocess.call([sys.executable, "-m", "pytest", "-m", "aot", "tests/backends/pallas_tpu"], cwd=ROOT)
    peers = [peer for peer in PEERS if not missing([PEERS[peer].package])] if options.peers is None else options.peers
    absent = missing(["tqdm", "libtpu", *(PEERS[peer].package for peer in peers)])
    if absent:
        return complain(parser.prog, f"{' and '.join(absent)} not installed: {install('aot,bench')}")
    chosen = [case for case in _chosen(options) if options.filter in case.name]
    entries = [one for one in published() if options.filter in one.case.name and one.case.chip in _chips(options)]
    if not (entries if options.published else chosen):
        return complain(parser.prog, "no case matches; names look like v5e-causal-t2048-d128-fwd")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        kept = Kept(options.kept, versions)
    except (OSError, ValueError) as error:
        return complain(parser.prog, f"{type(error).__name__}: {error}")
    with compiler() as one:
        if options.published:
            return _against_published(entries, one, kept, options.settings != "kept", options.out)
        if options.coverage:
            return _coverage(chosen, [PEERS[name] for name in peers], one, kept, options.settings, options.out)
        return _run(chosen, [JATTN, *(PEERS[name] for name in peers)], one, kept, options.settings, options.out)


def _parser() -> Parser:
    parser = Parser(prog="bench tpu", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three cases, a few minutes")
    parser.add_argument("--check", action="store_true", help="compile the tests' cases for every chip, count nothing")
    parser.add_argument("--chip", type=choices(TPUS), help=f"of {','.join(TPUS)}; default: {','.join(CHIP_NAMES)}")
    shapes = ["x".join(map(str, shape)) for shape in SHAPES]
    parser.add_argument("--shape", type=choices(shapes), metavar="BxHxTxD", help=f"of {','.join(shapes)}")
    parser.add_argument("--mask", type=choices(MASKS), help=f"of {','.join(MASKS)}")
    parser.add_argument("--pass", type=choices(DIRECTIONS), dest="directions", help=f"of {','.join(DIRECTIONS)}")
    parser.add_argument(
        "--published", action="store_true", help="the times in tokamax's cache beside estimates instead"
    )
    text = "how many settings of each peer are counted, after counting those of --settings; nothing of jattn's"
    parser.add_argument("--coverage", action="store_true", help=text)
    parser.add_argument("--peers", type=choices(PEERS), help="default: splash, if tokamax is installed")
    text = "of peers: those counted before; also the likely ones; or all, which takes hours; default: near"
    parser.add_argument("--settings", choices=("kept", "near", "all"), default="near", help=text)
    parser.add_argument("--filter", default="", metavar="SUBSTR", help="cases whose name has it")
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="default: bench/out")
    text = "counts of peers, by their versions; what is missing is added; default: bench/tpu/kept.json"
    parser.add_argument("--kept", type=Path, default=KEPT, metavar="FILE", help=text)
    return parser


def _chips(options: Namespace) -> Sequence[str]:
    return options.chip or CHIP_NAMES


def _chosen(options: Namespace) -> list[Case]:
    shapes = [shape for shape in SHAPES if options.shape is None or "x".join(map(str, shape)) in options.shape]
    chosen = cases(_chips(options), options.mask or MASKS, shapes, options.directions or DIRECTIONS)
    return [case for case in chosen if case.name in QUICK] if options.quick else chosen


def _run(
    chosen: Sequence[Case],
    contenders: Sequence[Contender],
    compiler: Compiler,
    kept: Kept,
    settings: str,
    out: Path,
) -> int:
    columns = _report.columns([one.name for one in contenders])
    facts = _machine.facts(["jattn", "jax", "jaxlib", "libtpu", *(one.package for one in contenders[1:])])
    text = [facts_line(facts), "", header(columns)]
    print("\n".join(text))
    rows: list[Row] = []
    bar = progress(chosen)
    for case in bar:
        bar.set_postfix_str(case.name)
        rows.append(Row(case, {one.name: _estimate(case, one, compiler, kept, settings) for one in contenders}))
        text.append(line(columns, rows[-1]))
        bar.write(text[-1])
        sys.stdout.flush()
        _write(out, facts, rows, complete=len(rows) == len(chosen))
    known = _spread.compare(published(), lambda case, setting: kept.known(case, TOKAMAX, setting))
    ending = ["", _report.summary(rows), "", _spread.table(known), "", LEGEND]
    print("\n".join(ending))
    (out / "tpu.txt").write_text("\n".join([*text, *ending]) + "\n")
    (out / "tpu.md").write_text(_report.markdown(rows, published()) + "\n")
    print(f"\nWritten: {', '.join(str(out / name) for name in ('tpu.txt', 'tpu.json', 'tpu.md'))}")
    return 0


def _against_published(entries: Sequence[Published], compiler: Compiler, kept: Kept, fresh: bool, out: Path) -> int:
    """Estimate every published time that was chosen."""
    text = [facts_line(_machine.facts(["jax", "libtpu", "tokamax"])), "", _spread.HEADER]
    print("\n".join(text))
    comparisons = []
    bar = progress(entries)
    count = lambda case, setting: kept.count(compiler.count, case, TOKAMAX, setting, fresh)
    for entry in bar:
        bar.set_postfix_str(entry.case.name)
        comparisons += _spread.compare([entry], count)
        text.append(_spread.line(comparisons[-1]))
        bar.write(text[-1])
    text.append("\n" + _spread.table(comparisons))
    print(text[-1])
    (out / "tpu_published.txt").write_text("\n".join(text) + "\n")
    print(f"\nWritten: {out / 'tpu_published.txt'}")
    return 0


def _coverage(
    chosen: Sequence[Case], peers: Sequence[Contender], compiler: Compiler, kept: Kept, settings: str, out: Path
) -> int:
    """Count what is asked for, and print for each part of each case how many settings stand behind its estimate."""
    text = [facts_line(_machine.facts(["jax", "libtpu", *(one.package for one in peers)])), "", *_report.COVERAGE]
    print("\n".join(text))
    estimates: list[Estimate] = []
    bar = progress(chosen)
    for case in bar:
        for peer in peers:
            bar.set_postfix_str(f"{case.name} {peer.name}")
            estimates.append(_estimate(case, peer, compiler, kept, settings))
            text += (lines := _report.coverage(case, peer.name, estimates[-1]))
            bar.write("\n".join(lines))
            sys.stdout.flush()
    text += ["", _report.covered(estimates)]
    print("\n".join(text[-2:]))
    (out / "tpu_coverage.md").write_text("\n".join(text) + "\n")
    print(f"\nWritten: {out / 'tpu_coverage.md'}")
    return 0


def _estimate(case: Case, contender: Contender, compiler: Compiler, kept: Kept, settings: str) -> Estimate:
    def count(part: Case, setting: Setting) -> Reply | None:
        fresh = settings == "all" or (settings == "near" and setting in contender.near(part))
        return kept.count(compiler.count, part, contender, setting, fresh)

    return estimate(case, contender, count, lambda part, setting: kept.known(part, contender, setting))


def _write(out: Path, facts: dict[str, object], rows: Sequence[Row], complete: bool) -> None:
    document = {"machine": facts, "complete": complete, "rows": [row.as_json() for row in rows]}
    write_json(out / "tpu.json", document)
