"""`python -m bench scale`: one sequence over 1 to 256 chips that are not there: what is sent, what that hides behind,
how much of the chips is left.  With --compile: training steps of whole pods, compiled ahead of time, and read.

A legend says what is assumed.
"""

import json
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

from bench import _machine
from bench._cli import Parser, choices, complain, install, integers, missing
from bench._passes import DIRECTIONS
from bench._paths import OUT
from bench._report import facts_line, header, line, progress, write_json
from bench.scale import _report
from bench.scale._cases import CHIP_NAMES, COUNTS, LENGTHS, MASKS, cases
from bench.scale._pods import PODS, Compiled, compiled, obstacle
from bench.scale._predict import predictions
from bench.scale._report import Row

Obstacle: TypeAlias = Callable[[str], str | None]
Compile: TypeAlias = Callable[[list[str], float], Iterable[tuple[str, Compiled | str]]]

LEGEND = """\
Nothing ran on any of these chips.
computes: the kernels of the busiest device, and what a ring reads and writes between them, its bytes over the
  bandwidth. Kernels on TPU: jattn.explain's estimate forward, from counted cycles of the tuned kernels, the backward
  pass by the ratio that was counted; splash's: the kept counts of python -m bench tpu. Of h100: products and
  instructions as python -m bench gpu --static has recorded them. A length that was not counted goes by the nearest.
sends: what a device sends in all; a step: the share of one of the ring's steps. In ms: its bytes over one link in one
  direction; of all_to_all the links between two halves of a torus. What a hop takes at least is left out.
hidden: the share of that during which kernels run. A ring's step takes as long as the longer of the two. On h100 XLA
  has to be told to send all of a step at once: README.md here says how.
splash ring: what its kernels would take. Its causal mask is an array of t * t booleans, so it cannot be made at 1024k.
efficiency, under each number of chips: one device's estimate for the whole call, over that of all devices together. A
  zig-zag ring's can exceed 100%: its pieces are rectangles without a mask, one device's tiles along the diagonal are
  not. splash's is of its own kernels: compare its ms.
mesh: heads x sequence, devices of both, on the most chips that the row can have. 1 x n: the sequence alone. Heads along
  an axis of their own exchange nothing in attention; what projections add up along it is not part of the call.
7x: a chip is two devices. What a way cannot do is left out: all_to_all needs heads that all devices divide."""


def main(arguments: Sequence[str], *, obstacle: Obstacle = obstacle, compiled: Compile = compiled) -> int:
    """Predict, or compile; 1 if a compiled program is not as it should be, 2 if the command line is wrong.

    Args:
      arguments: the command line.
      obstacle: why a pod cannot be compiled for here, None if it can.
      compiled: (names, seconds), each pod's name with its program or what went wrong.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    absent = missing(["tqdm", "matplotlib"])
    if absent:
        return complain(parser.prog, f"{' and '.join(absent)} not installed: {install('bench')}")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return complain(parser.prog, f"{type(error).__name__}: {error}")
    return _compile(parser.prog, options, obstacle, compiled) if options.compile else _predict(parser.prog, options)


def _parser() -> Parser:
    parser = Parser(prog="bench scale", description=__doc__)
    parser.add_argument("--chip", type=choices(CHIP_NAMES), default=CHIP_NAMES, help=f"of {','.join(CHIP_NAMES)}")
    text = f"lengths, multiples of 1024; default: {','.join(map(str, LENGTHS))}"
    parser.add_argument("--t", type=integers, default=LENGTHS, metavar="N", help=text)
    parser.add_argument("--mask", type=choices(MASKS), default=MASKS, help=f"of {','.join(MASKS)}")
    parser.add_argument(
        "--pass", type=choices(DIRECTIONS), dest="directions", default=DIRECTIONS, help=f"of {','.join(DIRECTIONS)}"
    )
    parser.add_argument("--filter", default="", metavar="SUBSTR", help="cases whose name has it")
    parser.add_argument("--compile", action="store_true", help="compile for whole pods, half an hour")
    parser.add_argument("--pod", type=choices(PODS), default=tuple(PODS), help=f"with --compile: of {','.join(PODS)}")
    parser.add_argument("--limit", type=float, default=3600.0, metavar="SECONDS", help="of one program; default: 3600")
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="default: bench/out")
    return parser


def _predict(program: str, options: Namespace) -> int:
    chosen = [
        one for one in cases(options.chip, options.t, options.mask, options.directions) if options.filter in one.name
    ]
    if not chosen or any(t % 1024 for t in options.t):
        return complain(program, "no case matches; names look like v5e-causal-t1048576-h32-g8-fwd-ring, zig-zag-heads")
    facts = _machine.facts(["jattn", "jax", "jaxlib"])
    text = [facts_line(facts), "", header(_report.COLUMNS)]
    print("\n".join(text))
    rows: list[Row] = []
    bar = progress(chosen)
    for case in bar:
        predicted = predictions(case, COUNTS)
        if predicted:
            rows.append(Row(case, predicted))
            text.append(line(_report.COLUMNS, rows[-1]))
            bar.write(text[-1])
    ending = ["", _report.summary(rows), "", LEGEND]
    print("\n".join(ending))
    (options.out / "scale.txt").write_text("\n".join([*text, *ending]) + "\n")
    lines = ",\n".join(json.dumps(row.as_json()) for row in rows)  # a row is a line
    (options.out / "scale.json").write_text(f'{{"machine": {json.dumps(facts)}, "rows": [\n{lines}\n]}}\n')
    _report.plot(rows, options.out / "scale.png")
    print(f"\nWritten: {', '.join(str(options.out / name) for name in ('scale.txt', 'scale.json', 'scale.png'))}")
    return 0


def _compile(program: str, options: Namespace, obstacle: Obstacle, compiled: Compile) -> int:
    obstacles = {name: obstacle(name) for name in options.pod}
    if None not in obstacles.values():
        return complain(program, next(filter(None, obstacles.values())))
    facts = _machine.facts(["jattn", "jax", "jaxlib", "libtpu", "tokamax", "jax-cuda13-plugin", "nvidia-cuda-nvcc"])
    text = [facts_line(facts), "", *(f"{name} is left out: {reason}" for name, reason in obstacles.items() if reason)]
    text.append(header(_report.COMPILED))
    print("\n".join(text), flush=True)
    answers, wrong = [], False
    for name, one in compiled([name for name, reason in obstacles.items() if reason is None], options.limit):
        ours = PODS[name].ring != "splash"
        if isinstance(one, str):
            answers.append({"name": name, "error": one})
            text.append(f"{name}: {one}")
            wrong = wrong or ours
        else:
            answers.append(one.as_json())
            text.append(line(_report.COMPILED, one))
            wrong = wrong or (ours and not (one.asynchronous and _report.fits(one)))
        print(text[-1], flush=True)
        (options.out / "pods.txt").write_text("\n".join(text) + "\n")
        write_json(options.out / "pods.json", {"machine": facts, "programs": answers})
    print(f"\nWritten: {options.out / 'pods.txt'}, {options.out / 'pods.json'}")
    return int(wrong)
