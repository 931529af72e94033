"""`python -m bench gpu --check`: values and every gradient on the GPU beside the definition in float64.

The definition runs on this machine's CPU, from the same rounded arrays; the call runs twice, to the same bits.
"""

from __future__ import annotations

import functools
import os
import time
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from bench._report import write_json
from bench.gpu._check_cases import CHECKS, Check
from bench.gpu._children import COMMAND, Pool, at_once, environment_of
from tests.tolerances import TOLERANCES

LIMIT = 60.0  # seconds of one case, its compilation included
STAGE_LIMIT = 175.0  # seconds of all cases together
IMPLEMENTATION = "pallas_gpu"
ERROR = "error"


def run(
    checks: Sequence[Check],
    facts: Mapping[str, Any],
    out: Path,
    *,
    simulated: bool = False,
    name: str = "check",
    command: Sequence[str] = COMMAND,
    stage_limit: float = STAGE_LIMIT,
    limit: float = LIMIT,
    implementation: str = IMPLEMENTATION,
) -> int:
    """Check everything that time allows, a line each; 1 if a result is wrong or a case failed.

    Args:
        checks: in order of importance.
        facts: about the machine.
        out: where `<name>.json` is written.
        simulated: whether kernels are interpreted on the CPU.
        name: of the file.
        command: what a worker runs.
        stage_limit: seconds after which no other case is begun.
        limit: seconds of one case.
        implementation: whose results are checked.
    """
    begun = time.perf_counter()
    environment = environment_of(out)
    if simulated:
        environment |= {"JATTN_INTERPRET": "1", "JAX_PLATFORMS": "cpu"}
    elif "cpu" not in os.environ.get("JAX_PLATFORMS", "cpu"):
        environment["JAX_PLATFORMS"] = f"{os.environ['JAX_PLATFORMS']},cpu"  # where the definition runs
    workers = 1 if simulated else at_once()
    rows: list[dict[str, Any]] = []
    with Pool(workers, environment, command) as pool, ThreadPoolExecutor(workers) as threads:

        def one(check: Check) -> dict[str, Any]:
            left = stage_limit - (time.perf_counter() - begun)
            about = {"name": check.name, "sizes": check.sizes, "dtype": check.dtype}
            if left < 5:
                return {**about, "status": "not run: out of time"}
            stage = check.name if check.name in FAKES else "check"
            request = {"stage": stage, "name": check.name, "implementation": implementation}
            answer = pool.ask(request, min(limit, left) if stage == "check" else FAKE_LIMIT)
            return {**about, **judge(answer, stage != "check")}

        for row in threads.map(one, checks):
            rows.append(row)
            print(line(row), flush=True)
            complete = len(rows) == len(checks)
            document = {"machine": facts, "implementation": implementation, "complete": complete, "rows": rows}
            write_json(out / f"{name}.json", document)
    counts = {status: sum(row["status"].split(":")[0] == status for row in rows) for status in STATUSES}
    summary = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    print(f"{len(rows)} cases: {summary}; {time.perf_counter() - begun:.0f} s; written: {out / f'{name}.json'}")
    return 1 if counts["WRONG"] or counts["failed"] else 0


STATUSES = ("right", "WRONG", "refused", "failed", "not run")
FAKES = ("hang", "crash", "raise")
FAKE_LIMIT = 5.0
"""What a rehearsal adds: a child that never answers, one that dies, and one that raises."""


def rehearsal() -> list[Check]:
    """A few tiny cases, and fakes that fail: each must cost one line."""
    tiny = [replace(check, b=1, h=2, g=1, t=128, s=128, d=64, e=64) for check in CHECKS if check.tiny]
    return [tiny[0], *(Check(name, lambda x: {}) for name in FAKES), *tiny[1:]]


def judge(answer: Mapping[str, Any], fake: bool = False) -> dict[str, Any]:
    """The answer with a status: `right`, `WRONG: what`, `refused: why` or `failed: how`; a fake is right to fail."""
    if fake:
        status = f"right: it had to fail: {answer[ERROR]}" if ERROR in answer else "WRONG: it had to fail"
        return {**answer, "status": status}
    if ERROR in answer:
        kind = "refused" if answer[ERROR].startswith("UnsupportedError") else "failed"
        return {**answer, "status": f"{kind}: {answer[ERROR]}"}
    wrong = [what for what, error in answer["errors"].items() if not error["error"] <= error["tolerance"]]
    if not answer["same_bits"]:
        wrong.append("other bits the second time")
    return {**answer, "status": f"WRONG: {', '.join(wrong)}" if wrong else "right"}


def line(row: Mapping[str, Any]) -> str:
    """A case's line: the largest error in units of its tolerance, and the status."""
    errors = row.get("errors", {})
    worst = max((error["error"] / error["tolerance"] for error in errors.values()), default=None)
    shown = "     -" if worst is None else f"{worst:6.2f}"
    seconds = f"{row['seconds']:5.1f} s" if "seconds" in row else "      -"
    return f"{row['name']:20} {row['sizes']:46} {shown} of tolerance  {seconds}  {row['status']}"


# In the child


def check_case(request: Mapping[str, Any]) -> dict[str, Any]:
    """The largest errors of out, lse and every gradient, and whether the bits were the same twice."""
    import jax

    check = named(request["name"], bool(int(os.environ.get("JATTN_INTERPRET") or "0")))
    inputs, cotangents = draw(check)
    fn = functools.partial(everything, check, request["implementation"])
    run = jax.jit(fn).lower(inputs, cotangents).compile()
    got, again = (jax.device_get(run(inputs, cotangents)) for _ in range(2))
    wanted = reference(check, inputs, cotangents)
    return {"errors": errors(check, got, wanted), "same_bits": same_bits(got, again)}


def named(name: str, tiny: bool) -> Check:
    return next(check for check in (rehearsal() if tiny else CHECKS) if check.name == name)


def draw(check: Check) -> tuple[dict[str, Any], dict[str, Any]]:
    """q, k, v and the arrays of a case, and cotangents of out and lse; the same for the same case everywhere."""
    import jax.numpy as jnp

    rng = np.random.default_rng(zlib.crc32(check.name.encode()))
    axes = {"query": "bthd", "key": "bsgd", "value": "bsge", "out": "bthe"}
    drawn = {
        name: jnp.asarray(rng.standard_normal([getattr(check, axis) for axis in letters]), check.dtype)
        for name, letters in axes.items()
    }
    if check.stored:
        drawn |= {name: (40 * drawn[name]).astype(check.stored) for name in ("key", "value")}
    cotangents = {"out": check.cotangent * drawn.pop("out")}
    if check.lse:
        cotangents["lse"] = jnp.asarray(rng.standard_normal((check.b, check.t, check.h)), jnp.float32)
    arrays = {name: jnp.asarray(value) for name, value in check.arrays(rng, check).items()}
    return {**drawn, **arrays}, cotangents


def everything(
    check: Check, implementation: str, inputs: Mapping[str, Any], cotangents: Mapping[str, Any]
) -> dict[str, Any]:
    """out, lse and the gradient of every array of floating-point numbers, by name."""
    import jax
    import jax.numpy as jnp

    import jattn

    learns = lambda x: jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize > 1
    floats = {name: x for name, x in inputs.items() if learns(x)}
    rest = {name: x for name, x in inputs.items() if name not in floats}

    def attend(floats: Mapping[str, Any]) -> dict[str, Any]:
        arrays = {**rest, **floats}
        q, k, v = (arrays.pop(name) for name in ("query", "key", "value"))
        options = check.options(arrays)
        result = jattn.attention(q, k, v, implementation=implementation, return_lse=check.lse, **options)
        return dict(zip(("out", "lse"), result, strict=True)) if check.lse else {"out": result}

    results, pull_back = jax.vjp(attend, floats)
    (gradients,) = pull_back({name: x.astype(results[name].dtype) for name, x in cotangents.items()})
    return {**results, **{f"d{name}": x for name, x in gradients.items()}}


def reference(check: Check, inputs: Mapping[str, Any], cotangents: Mapping[str, Any]) -> dict[str, Any]:
    """The definition in float64 on the CPU, from the arrays as they were rounded."""
    import jax

    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        widened = {name: _widen(x) for name, x in inputs.items()}
        fn = functools.partial(everything, check, "reference")
        return jax.device_get(jax.jit(fn)(widened, {name: _widen(x) for name, x in cotangents.items()}))


def _widen(x: ArrayLike) -> np.ndarray:
    array = np.asarray(x)
    return array.astype(np.float64) if array.dtype.kind not in "biu" and array.dtype.itemsize > 1 else array


def errors(check: Check, got: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """By array, the largest |got - wanted| / (1 + |wanted|) and what it may be; infinite for NaN and for other
    infinities.

    A gradient that is a sum over rows is as exact as its largest number: there that one stands for |wanted|.
    """
    by_output = {}
    for name, right in wanted.items():
        ours, right = np.asarray(got[name], np.float64), np.asarray(right, np.float64)
        size = np.where(np.isfinite(right), np.abs(right), 0.0)
        if name not in _ROWS:
            size = np.max(size, initial=0.0)
        with np.errstate(invalid="ignore"):
            gaps = np.where(ours == right, 0.0, np.abs(ours - right) / (1 + size))
        gaps = np.where(np.isfinite(gaps), gaps, np.inf)
        by_output[name] = {"error": float(np.max(gaps, initial=0.0)), "tolerance": tolerance(check.dtype, name)}
    return by_output


_ROWS = ("out", "lse", "dquery", "dkey", "dvalue")


def tolerance(dtype: str, name: str) -> float:
    """`tests.tolerances`; lse is float32 whatever the dtype, of products that are summed as float16 at the worst."""
    if name == "lse":
        return min(TOLERANCES[dtype].value, TOLERANCES["float16"].value)
    return TOLERANCES[dtype].value if name == "out" else TOLERANCES[dtype].gradient


def same_bits(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether every array has the same bytes."""
    return all(np.asarray(one[name]).tobytes() == np.asarray(other[name]).tobytes() for name in one)
