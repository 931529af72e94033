"""`python -m bench gpu --compile`: whether every check compiles, gradients included, for GPUs that are not there.

The simulator knows neither the copy engine's rules nor the limits of shared memory and registers; the compiler does,
and `--static` asks it about sizes that tiles divide only.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jattn_kernels.chips import GPUS

from bench import _machine
from bench._report import facts_line, write_json
from bench.gpu import _check
from bench.gpu._check_cases import Check
from bench.gpu._children import COMMAND, Worker
from bench.gpu._static import AT_ONCE, LIMIT, environment
from bench.gpu._tools import PLUGINS, TOOLS


def run(checks: Sequence[Check], chips: Sequence[str], out: Path, command: Sequence[str] = COMMAND) -> int:
    """Compile everything, a line each, and write compile.json; 1 if something failed."""
    begun, rows = time.perf_counter(), []
    facts = _machine.facts(["jattn", "jax", "jaxlib", *PLUGINS, *TOOLS.values()])
    print(facts_line(facts), flush=True)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for of_chip in pool.map(lambda chip: list(_of_chip(checks, chip, command)), chips):
            rows += of_chip
    write_json(out / "compile.json", {"machine": facts, "rows": rows})
    failed = sum(row["status"].startswith("failed") for row in rows)
    seconds = time.perf_counter() - begun
    print(f"{len(rows)} compilations: {failed} failed; {seconds:.0f} s; written: {out / 'compile.json'}")
    return 1 if failed else 0


def _of_chip(checks: Sequence[Check], chip: str, command: Sequence[str]) -> Any:
    """A row for each check, printed as it comes."""
    with Worker(environment(None), command) as worker:
        for check in checks:
            answer = worker.ask({"stage": "compile", "name": check.name, "chip": chip}, LIMIT)
            status = _check.judge({"errors": {}, "same_bits": True, **answer})["status"]
            row = {"chip": chip, "name": check.name, "sizes": check.sizes, "seconds": answer["seconds"]}
            row["status"] = status.replace("right", "compiled")
            print(f"{chip:5} {check.name:20} {check.sizes:46} {row['seconds']:5.1f} s  {row['status']}", flush=True)
            yield row


def compile_check(request: Mapping[str, Any]) -> dict[str, Any]:
    """In the child: all that a check asks for, forward and backward."""
    import jax

    from bench.gpu import _topology

    chip, check = GPUS[request["chip"]], _check.named(request["name"], tiny=False)
    _topology.lower_for(chip)
    mesh = _topology.mesh(chip)
    placed = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed)
    shapes = jax.tree.map(like, _check.draw(check))
    with jax.set_mesh(mesh):
        fn = functools.partial(_check.everything, check, _check.IMPLEMENTATION)
        jax.jit(fn).lower(*shapes).compile()
    return {}
