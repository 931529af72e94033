"""`python -m bench gpu --static`: kernels compiled for GPUs that are not there, and what their machine code says.

Every case compiles in a process of its own, two at once.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jattn_kernels.chips import GPUS, Gpu

from bench import _machine
from bench._report import facts_line, header, line, progress, write_json
from bench.gpu import _report
from bench.gpu._cases import Case
from bench.gpu._children import COMMAND, Worker
from bench.gpu._report import StaticRow
from bench.gpu._tools import PLUGINS, TOOLS, tool

if TYPE_CHECKING:
    from bench.gpu._contenders import Program

LIMIT = 240.0  # seconds of one compilation
AT_ONCE = 2
_FLAGS = "--xla_gpu_autotune_level=0"  # autotuning would run kernels


def run(cases: Sequence[Case], contenders: Sequence[str], out: Path, command: Sequence[str] = COMMAND) -> int:
    """Compile everything, print a table as it comes, and write static.json, static.txt and static.png."""
    packages = ["jattn", "jax", "jaxlib", *PLUGINS, *TOOLS.values(), *(["tokamax"] if "tokamax" in contenders else [])]
    facts = _machine.facts(packages)
    columns = _report.static_columns()
    text = [facts_line(facts), "", header(columns)]
    print("\n".join(text), flush=True)
    rows: list[StaticRow] = []
    asked = [(case, name) for case in cases for name in contenders]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for fresh in progress_of(pool, asked, command):
            rows += fresh
            lines = [line(columns, row) if row.error is None else _report.static_failure(row) for row in fresh]
            text += lines
            if lines:
                print("\n".join(lines), flush=True)
            _write(out, facts, rows, complete=False)
    ending = ["", _report.static_summary(rows), "", _report.STATIC_LEGEND]
    print("\n".join(ending))
    _write(out, facts, rows, complete=True)
    (out / "static.txt").write_text("\n".join([*text, *ending]) + "\n")
    _report.plot_static(rows, out / "static.png")
    written = [out / f"static.{suffix}" for suffix in ("txt", "json", "png")]
    print(f"\nWritten: {', '.join(str(path) for path in written if path.exists())}")
    return 0


def progress_of(pool: ThreadPoolExecutor, asked: Sequence[tuple[Case, str]], command: Sequence[str]) -> Any:
    """What comes of each case and contender, in order, with a bar."""
    return progress_bar(pool.map(lambda one: rows_of(one[0], one[1], command), asked), len(asked))


def progress_bar(answers: Any, total: int) -> Any:
    """A tqdm bar over what comes one by one."""
    bar = progress(range(total))
    for one, _ in zip(answers, bar, strict=True):
        yield one


def rows_of(case: Case, name: str, command: Sequence[str] = COMMAND) -> list[StaticRow]:
    """A row for each kernel; where the gradients do not compile, of the forward kernel alone and a row that says so."""
    from bench.gpu._contenders import CONTENDERS

    contender = CONTENDERS[name]
    first = contender.skips(case)
    if not first:
        answer = _compile(case, name, command)
        if "error" not in answer:
            return _report.static_rows(case, contender, answer)
        failure = StaticRow(case, name, error=answer["error"])
    else:
        failure = None
    forward = dataclasses.replace(case, direction="fwd")
    if not case.backward or contender.skips(forward):
        return [failure] if failure else []
    answer = _compile(forward, name, command)
    if "error" in answer:
        return [failure or StaticRow(forward, name, error=answer["error"])]
    return [*_report.static_rows(forward, contender, answer), *([failure] if failure else [])]


def _compile(case: Case, name: str, command: Sequence[str]) -> dict[str, Any]:
    return ask({"stage": "static", "case": asdict(case), "contender": name}, command)


def ask(request: Mapping[str, Any], command: Sequence[str] = COMMAND) -> dict[str, Any]:
    """What a process of its own answers that compiles, and dumps into the request's `dump`."""
    with tempfile.TemporaryDirectory(prefix="jattn-bench-") as dump, Worker(environment(dump), command) as worker:
        return worker.ask({**request, "dump": dump}, LIMIT)


def environment(dump: str | None) -> dict[str, str]:
    """What JAX needs to compile without a GPU, and Mosaic to dump what it makes, if it is to."""
    folders = {str(path.parent) for name in TOOLS if (path := tool(name)) is not None}
    dumped = {"PTX": "1", "PTXAS": "1", "TO": dump} if dump is not None else {}
    return {
        "JAX_PLATFORMS": "cpu",
        "JATTN_INTERPRET": "0",
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # what is found there is not dumped
        "XLA_FLAGS": " ".join(filter(None, [os.environ.get("XLA_FLAGS"), _FLAGS])),
        "PATH": os.pathsep.join([*sorted(folders), os.environ.get("PATH", "")]),
        **{f"MOSAIC_GPU_DUMP_{name}": value for name, value in dumped.items()},
    }


def compile_case(request: Mapping[str, Any]) -> dict[str, Any]:
    """In the child: the kernels of a contender's program for a case."""
    from bench.gpu._contenders import CONTENDERS

    case = Case(**request["case"])
    contender = CONTENDERS[request["contender"]]
    return {"kernels": compiled(GPUS[case.chip], lambda: contender.program(case), request["dump"])[0]}


def compiled(chip: Gpu, program: Callable[[], Program], dump: str) -> tuple[list[dict[str, Any]], str]:
    """In the child: the Mosaic kernels of a program that is made and compiled for a chip that is not there, as JSON, in
    the order in which they were lowered; and the optimised program."""
    import jax

    from bench.gpu import _topology
    from bench.gpu._kernels import kernels

    _topology.lower_for(chip)
    mesh = _topology.mesh(chip)
    placed = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    with jax.set_mesh(mesh):
        fn, shapes = program()
        arguments = [jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=placed) for one in shapes]
        optimised = jax.jit(fn).lower(*arguments).compile().as_text()
    found = kernels(Path(dump), chip)
    if not found or optimised is None:
        raise RuntimeError("no Mosaic kernel in the program")
    return [kernel.as_json(chip) for kernel in found], optimised


def _write(out: Path, facts: Mapping[str, object], rows: Sequence[StaticRow], complete: bool) -> None:
    document = {"machine": facts, "complete": complete, "rows": [row.as_json() for row in rows]}
    write_json(out / "static.json", document)
