"""`python -m bench.tpu._worker DIR`: compiles programs for TPUs that are not there and counts their kernels' cycles.

Each line of standard input is a request, each line of standard output answers one, both JSON. A request holds a case, a
contender and a setting; the answer is {"kernels": {name: counts}, "between_bytes": bytes} or {"error": one line}. The
environment must be that of `bench.tpu._compile`, which starts this: libtpu reads it once, when it loads, and dumps into
DIR.
"""

import json
import os
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jattn_kernels.chips import TPUS, Tpu
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bench._hlo import between
from bench.tpu._block_tables import block_tables
from bench.tpu._bundles import parse
from bench.tpu._cases import Case
from bench.tpu._contenders import CONTENDERS
from bench.tpu._cycles import count, total

_KERNEL = re.compile(r"%(\S+) = [^\n]*custom_call_target=\"tpu_custom_call\"")


def compile_and_count(
    chip: Tpu, fn: Callable[..., Any], shapes: Sequence[jax.ShapeDtypeStruct], dump: Path
) -> dict[str, Any]:
    """Compile a function that calls Pallas kernels for a chip that is not there, and walk each kernel.

    Args:
        chip: which.
        fn: the function.
        shapes: of its arguments.
        dump: the directory into which libtpu dumps.

    Returns:
        Under `kernels`, by the name in the optimised program, what each takes; under `between_bytes`, what the rest of
        the program reads and writes in main memory.
    """
    devices = topologies.get_topology_desc(platform="tpu", topology_name=chip.topology).devices
    mesh = Mesh(np.array(devices[:1]), ("x",))
    placed = NamedSharding(mesh, PartitionSpec())
    with jax.set_mesh(mesh):
        lowered = jax.jit(fn).lower(*(jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=placed) for one in shapes))
        lowered.compile()
    optimised = _only(dump, r"\d+-TLP-hlo\.txt")  # as_text() fails where the copies are asynchronous, as on 7x
    operands = defaultdict(list)
    module = lowered.compiler_ir("stablehlo")
    assert module is not None
    for table in block_tables(module):
        operands[table.kernel].append(table.runs)
    counts = {}
    for name in _KERNEL.findall(optimised):
        known = operands[name.rpartition(".")[0] if name not in operands else name]
        program = parse(_only(dump, rf"\d+-{re.escape(name)}-\d+-final_bundles\.txt"))
        counts[name] = asdict(total(count(program, chip, run) for run in (known.pop(0) if known else [None])))
    return {"kernels": counts, "between_bytes": sum(between(optimised))}


def _only(dump: Path, pattern: str) -> str:
    """The text of the one dump whose name matches."""
    dumps = [path for path in dump.iterdir() if re.fullmatch(pattern, path.name)]
    if len(dumps) != 1:
        raise RuntimeError(f"{len(dumps)} dumps match {pattern}, expected one")
    return dumps[0].read_text()


def _answer(request: dict[str, Any], dump: Path) -> dict[str, Any]:
    case = Case(**request["case"])
    try:
        fn, shapes = CONTENDERS[request["contender"]].program(case, request["setting"])
        return compile_and_count(TPUS[case.chip], fn, shapes, dump)
    except Exception as error:  # whatever a compiler may raise: it is the answer
        first = str(error).strip().partition("\n")[0]
        return {"error": f"{type(error).__name__}: {first[:300]}"}
    finally:
        for path in dump.iterdir():
            path.unlink()


def main(dump: Path) -> None:
    """Answer until the input ends. What libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line), dump)), file=answers, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
