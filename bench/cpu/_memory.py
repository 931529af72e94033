"""The memory table: what the compiled programs of jattn and jax.nn allocate. Nothing is run."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from bench import _report
from bench.cpu import _cases
from bench.cpu._cases import Case
from bench.cpu._contenders import Attend, jattn_attend, jax_attend, jax_program

ATTENDS = {"jattn": jattn_attend, "jax": jax_attend}


def memory_cases(
    lengths: Sequence[int] | None,
    widths: Sequence[int] | None,
    masks: Sequence[str] | None,
    directions: Sequence[str],
) -> list[Case]:
    """Cases of shape [1, t, 8, d]; by default t from 2048, d 64, causal."""
    lengths = lengths or [t for t in _cases.LENGTHS if t >= 2048]
    longest = _cases.cases(lengths, widths or (64,), masks or ("causal",), directions)
    return [Case(case.mask, case.t, case.d, case.direction, b=1, h=8) for case in longest]


def temporary_bytes(case: Case, attend: Attend) -> int:
    """Bytes that the compiled program allocates besides its arguments and results."""
    array = jax.ShapeDtypeStruct((case.b, case.t, case.h, case.d), jnp.float32)
    ids = jax.ShapeDtypeStruct((case.b, case.t), jnp.int32)
    program = jax.jit(jax_program(case, attend)).lower(array, array, array, array, ids).compile()
    analysis = program.memory_analysis()
    if analysis is None:
        raise RuntimeError("this backend reports no memory analysis")
    return analysis.temp_size_in_bytes


def run(chosen: Sequence[Case], out: Path, attends: Mapping[str, Callable[[Case], Attend]] = ATTENDS) -> int:
    """Print the table and write it, cpu_memory.txt and cpu_memory.json, under `out`."""
    columns = (f"{name} {unit}" for unit in ("MiB", "bytes/token") for name in attends)
    table, rows = [["[1, t, 8, d]", *columns]], []
    for case in _report.progress(chosen):
        temporary = {name: temporary_bytes(case, attend(case)) for name, attend in attends.items()}
        rows.append({"name": case.name, "temp_bytes": temporary})
        mebibytes = [_report.number(size / 2**20) for size in temporary.values()]
        table.append([case.name, *mebibytes, *(f"{size / case.t:.0f}" for size in temporary.values())])
        _report.write_json(out / "cpu_memory.json", {"complete": len(rows) == len(chosen), "rows": rows})
    text = "Temporary memory of the compiled programs, besides inputs and outputs, float32\n\n" + _report.aligned(table)
    print(text)
    (out / "cpu_memory.txt").write_text(text + "\n")
    return 0
