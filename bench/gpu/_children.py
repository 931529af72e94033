"""Work in processes of their own: what hangs or dies costs one request, and not the run.

A worker answers a line of JSON with a line of JSON, for as many requests as it survives; the next after one that hung
or died gets a new process.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench._paths import ROOT

COMMAND = (sys.executable, "-m", "bench.gpu._worker")
AT_ONCE = 8  # most processes beside each other
Reply = dict[str, Any]


class Worker:
    """One process at a time.  Use it in a `with` statement.

    Args:
        environment: added to this process's.
        command: what to start.
    """

    def __init__(self, environment: Mapping[str, str] | None = None, command: Sequence[str] = COMMAND):
        self._environment = environment or {}
        self._command = command
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str] = queue.Queue()
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  (closed on exit)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.stop()
        self._errors.close()

    def ask(self, request: Mapping[str, Any], limit: float) -> Reply:
        """The answer; `error` and `died` if there is none within `limit` seconds, or the process ends.

        `seconds` is what it took, the start of the process included.
        """
        start = time.perf_counter()
        answer = self._ask(request, limit)
        if answer.get("died") or answer.get("poisoned"):
            self.stop()
        return {**answer, "seconds": round(time.perf_counter() - start, 1)}

    def _ask(self, request: Mapping[str, Any], limit: float) -> Reply:
        process = self._process = self._process or self._start()
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        try:
            line = self._lines.get(timeout=limit)
        except queue.Empty:
            return {"error": f"no answer in {limit:.0f} s", "died": True}
        if line:
            return json.loads(line)
        status = process.wait()
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        return {"error": f"died with {how}: {self._last_error()}", "died": True}

    def _start(self) -> "subprocess.Popen[str]":
        self._errors.seek(0)
        self._errors.truncate()
        self._lines = lines = queue.Queue()
        path = [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
        process = subprocess.Popen(
            self._command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path), **self._environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,  # so that what it started ends with it
        )
        threading.Thread(target=_forward, args=(process, lines), daemon=True).start()
        return process

    def stop(self) -> None:
        """End the process and what it started, whatever it does."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _last_error(self) -> str:
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        return lines[-1][:300] if lines else "no message"


class Pool:
    """Several workers, each asked by one thread at a time.  Use it in a `with` statement.

    Args:
        count: of workers.
        environment, command: as `Worker` takes them.
    """

    def __init__(self, count: int, environment: Mapping[str, str] | None = None, command: Sequence[str] = COMMAND):
        self._all = [Worker(environment, command) for _ in range(count)]
        self._free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self._all:
            self._free.put(worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._all:
            worker.__exit__(None, None, None)

    def ask(self, request: Mapping[str, Any], limit: float, last: bool = False) -> Reply:
        """The answer of one that is free, whose process ends with it if it is to be the `last`."""
        worker = self._free.get()
        try:
            return worker.ask(request, limit)
        finally:
            if last:
                worker.stop()
            self._free.put(worker)


def at_once() -> int:
    """How many processes compile beside each other: each keeps more than one processor busy."""
    return max(1, min(AT_ONCE, (os.cpu_count() or 2) // 2))


def _forward(process: "subprocess.Popen[str]", lines: "queue.Queue[str]") -> None:
    """The process's lines, then an empty one when it has closed its output."""
    assert process.stdout is not None
    with contextlib.suppress(ValueError):  # closed by stop()
        for line in process.stdout:
            lines.put(line)
    lines.put("")


def environment_of(folder: Path) -> dict[str, str]:
    """What has a child keep its compiled programs, find those of its siblings, and leave them memory of the GPU."""
    return {
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(folder.resolve() / "jax_cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
