"""The compiler for TPUs that are not there, in a process of its own: libtpu reads its settings once, when it loads."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench._paths import ROOT
from bench.tpu._cases import Case, Setting

# Without these XLA moves the operands of a small problem into on-chip memory before the kernel starts, where those of a
# large one would not fit: for v5e and v5p, for v6e and tpu7x, and for v4.
_OPERANDS_STAY = (
    "--xla_vf_vmem_memory_space_assignment=false",
    "--xla_gf_vmem_memory_space_assignment=false",
    "--xla_tpu_cmem_memory_space_assignment=false",
)


class Compiler:
    """Compiles and counts, one request at a time; a worker that dies is replaced.

    Use it in a `with` statement: it holds a process and a temporary directory.

    Args:
        python: what the worker runs on.
    """

    def __init__(self, python: str = sys.executable) -> None:
        self._python = python
        self._directory = tempfile.TemporaryDirectory(prefix="jattn-bench-")
        self._worker: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._stop()
        self._directory.cleanup()

    def count(self, case: Case, contender: str, setting: Setting) -> dict[str, Any]:
        """The worker's answer: `kernels` and `between_bytes`, or `error`; with `died` if asking again may help."""
        worker = self._worker = self._worker or self._start()
        assert worker.stdin is not None
        assert worker.stdout is not None
        request = {"case": asdict(case), "contender": contender, "setting": setting}
        with contextlib.suppress(BrokenPipeError):
            worker.stdin.write(json.dumps(request) + "\n")
            worker.stdin.flush()
        if answer := worker.stdout.readline():
            return json.loads(answer)
        self._stop()
        last = self._stderr.read_text(errors="replace").splitlines()[-1:] or ["no message"]
        return {"error": f"the compiler died with status {worker.returncode}: {last[0]}", "died": True}

    def _start(self) -> "subprocess.Popen[str]":
        dump = Path(self._directory.name) / "dump"
        shutil.rmtree(dump, ignore_errors=True)  # what a worker that died left there
        dump.mkdir()
        with self._stderr.open("w") as stderr:
            return subprocess.Popen(
                [self._python, "-m", "bench.tpu._worker", str(dump)],
                cwd=ROOT,
                env=environment(dump),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )

    def _stop(self) -> None:
        if self._worker is not None:
            self._worker.communicate()
            self._worker = None

    @property
    def _stderr(self) -> Path:
        return Path(self._directory.name) / "stderr"


def environment(dump: Path, passes: str = ".*final_bundles.*", flags: Sequence[str] = _OPERANDS_STAY) -> dict[str, str]:
    """This process's environment, with what libtpu needs to compile without a TPU and to dump its programs.

    Args:
        dump: the directory into which it dumps.
        passes: a regular expression of the passes after which it dumps a kernel; what XLA made it dumps always.
        flags: more of libtpu's.
    """
    dumps = [
        f"--xla_jf_dump_to={dump}",
        "--xla_jf_dump_llo_text=true",
        f"--xla_jf_dump_llo_pass_label_regex={passes}",  # one of seventy passes: half the time
    ]
    path = [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "LIBTPU_INIT_ARGS": " ".join([*dumps, *flags]),
        "PYTHONPATH": os.pathsep.join(path),
    }
