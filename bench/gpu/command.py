"""`python -m bench gpu`: jattn's GPU kernels, compiled without a GPU, or checked, timed and tuned on one.

Without a stage: check, time and tune, in this order.  Each stage stands alone, and writes as it goes.
"""

import datetime
import os
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jattn_kernels.chips import GPUS

from bench import _machine
from bench._cli import Missing, Parser, choices, complain, install, missing
from bench._paths import OUT
from bench._report import facts_line
from bench.gpu import _check, _compile, _device, _static, _time, _tools, confirm, tune
from bench.gpu._cases import CHIP_NAMES, Case, static_cases, timed_cases
from bench.gpu._check_cases import CHECKS, Check
from bench.gpu._children import COMMAND, Worker
from bench.gpu._contenders import JATTN, PEERS
from bench.gpu._contenders import installed as peers_here
from bench.gpu._runners import RUNNERS
from bench.gpu._runners import installed as runners_here

STAGES = ("check", "time", "tune")
_DEVICE_LIMIT = 120.0  # seconds in which a GPU answers that it is there
_VERSIONS = ("jattn", "jax", "jaxlib", *_tools.PLUGINS, "torch", "tokamax")


@dataclass(frozen=True)
class Surroundings:
    """What a run depends on besides its command line.

    Attributes:
        missing: which of some modules are not installed.
        too_old: why kernels cannot run with the JAX that is here, None if they can.
        obstacle: why nothing can be compiled for a GPU here, None if it can.
        worker: the command of a process that has the GPU.
        checks: what `--check` and `--compile` choose from.
        rehearsal: what `--rehearse` runs.
    """

    missing: Missing = missing
    too_old: Callable[[], str | None] = _tools.too_old
    obstacle: Callable[[], str | None] = _tools.obstacle
    worker: Sequence[str] = COMMAND
    checks: Sequence[Check] = tuple(CHECKS)
    rehearsal: Callable[[], Sequence[Check]] = _check.rehearsal


HERE = Surroundings()


def main(arguments: Sequence[str], here: Surroundings = HERE) -> int:
    """Run the stages; 1 if a result is wrong, 2 if the command line is, or something is missing."""
    parser = _parser()
    options = parser.parse_args(arguments)
    stages = [stage for stage in STAGES if getattr(options, stage)] or list(STAGES)
    absent = here.missing(["tqdm", "matplotlib"])
    if absent:
        return complain(parser.prog, f"{' and '.join(absent)} not installed: {install('bench')}")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return complain(parser.prog, f"{type(error).__name__}: {error}")
    if options.confirm:
        return confirm.run(parser.prog, options.confirm, options.table)
    if options.static:
        return _run_static(parser.prog, options, here)
    if options.compile:
        return _run_compile(parser.prog, options, here)
    if options.rehearse or os.environ.get("JATTN_INTERPRET", "0") not in ("", "0"):
        return _rehearse(parser.prog, options, here)
    if reason := here.too_old():
        return complain(parser.prog, f"{reason}; --static and --rehearse need it too")
    facts = device_facts(here.worker)
    if "error" in facts:
        return complain(parser.prog, f"no GPU here ({facts['error']}); --static works without one, --rehearse as well")
    print(facts_line(facts), flush=True)
    return max(_stage(stage, options, facts, here) for stage in stages)


def _parser() -> Parser:
    parser = Parser(prog="bench gpu", description=__doc__)
    parser.add_argument("--static", action="store_true", help="compile for GPUs that are not there and count")
    parser.add_argument("--compile", action="store_true", help="what --check runs, compiled without a GPU")
    parser.add_argument("--check", action="store_true", help="values and gradients beside the definition, 3 minutes")
    parser.add_argument("--time", action="store_true", help="times beside peers, 6 minutes")
    parser.add_argument("--tune", action="store_true", help="tile sizes into the kernels' table")
    parser.add_argument(
        "--rehearse", action="store_true", help="tiny checks on the simulator, and fakes; so does JATTN_INTERPRET=1"
    )
    text = "a check.json in the repository, kept for what it shows: the backend is chosen where it was right"
    parser.add_argument("--confirm", type=Path, metavar="FILE", help=text)
    text = f"with --static and --compile: of {','.join(GPUS)}"
    parser.add_argument("--chip", type=choices(GPUS), default=CHIP_NAMES, help=text)
    parser.add_argument("--peers", type=choices(PEERS), help="with --static: default: those that are installed")
    parser.add_argument("--runners", type=choices(RUNNERS), help="with --time: default: those that are installed")
    parser.add_argument("--filter", default="", metavar="SUBSTR", help="cases whose name has it")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="of the stage, in the place of its own")
    parser.add_argument(
        "--implementation", default=_check.IMPLEMENTATION, metavar="NAME", help="with --check and --rehearse"
    )
    parser.add_argument("--table", type=Path, default=tune.TABLE, metavar="FILE", help="with --tune: the kernels' own")
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="default: bench/out")
    return parser


def device_facts(command: Sequence[str]) -> dict[str, Any]:
    """Device, driver, versions and date; `error` where there is no GPU."""
    with Worker(command=command) as worker:
        device = worker.ask({"stage": "device"}, _DEVICE_LIMIT)
    device.pop("seconds", None)
    if "error" in device:
        return device
    return {**device, "driver": _device.driver(), **_machine.facts(_VERSIONS)}


def _run_static(program: str, options: Namespace, here: Surroundings) -> int:
    if reason := here.obstacle():
        return complain(program, reason)
    chosen = _filtered(program, static_cases(options.chip), options.filter, "h100-causal-t4096-d128-fwdbwd")
    peers = peers_here() if options.peers is None else options.peers
    absent = here.missing([PEERS[peer].package for peer in peers])
    if absent:
        return complain(program, f"{' and '.join(absent)} not installed: {install('bench')}")
    return _static.run(chosen, [JATTN.name, *peers], options.out, here.worker) if chosen else 2


def _run_compile(program: str, options: Namespace, here: Surroundings) -> int:
    if reason := here.obstacle():
        return complain(program, reason)
    return _compile.run([x for x in here.checks if options.filter in x.name], options.chip, options.out, here.worker)


def _filtered(program: str, cases: Sequence[Case], part: str, example: str) -> list[Case]:
    """Those whose name has the part; a line if there are none."""
    chosen = [case for case in cases if part in case.name]
    if not chosen:
        complain(program, f"no case matches; names look like {example}")
    return chosen


def _rehearse(program: str, options: Namespace, here: Surroundings) -> int:
    """The check's own machinery, with the simulator in the place of a GPU; without it, on another backend."""
    if options.implementation == _check.IMPLEMENTATION and (reason := here.too_old()):
        return complain(program, f"{reason}; --implementation blockwise rehearses the rest")
    facts = {"device": "simulator", "date": datetime.date.today().isoformat(), **_machine.facts(_VERSIONS)}
    return _check.run(
        here.rehearsal(),
        facts,
        options.out,
        simulated=True,
        name="rehearsal",
        command=here.worker,
        stage_limit=options.limit or 900.0,
        limit=180.0,
        implementation=options.implementation,
    )


def _stage(stage: str, options: Namespace, facts: dict[str, Any], here: Surroundings) -> int:
    more = {"command": here.worker, **({"stage_limit": options.limit} if options.limit else {})}
    match stage:
        case "check":
            checks = [check for check in here.checks if options.filter in check.name]
            return _check.run(checks, facts, options.out, implementation=options.implementation, **more)
        case "time":
            names = options.runners or runners_here()
            chosen = [case for case in timed_cases() if options.filter in case.name]
            return _time.run(chosen, names, facts, options.out, **more)
        case _:
            chosen = [case for case in tune.cases() if options.filter in case.name]
            return tune.run(chosen, facts, options.out, table=options.table, **more)
