"""Two processes, which meet on this machine and have four devices each, compute what one process with eight does."""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys

import pytest

from tests.parallel.test_attention import GRADIENTS, OUT

GLOO = hasattr(importlib.import_module("jaxlib._jax"), "make_gloo_tcp_collectives")
ASKED = "causal::a", "lengths::b"
PROCESSES = 2


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


@pytest.mark.skipif(not GLOO, reason="this jaxlib is built without gloo")
def test_two_processes():
    """Values, gradients and slopes of a ring that crosses from one to the other, in both orders."""
    found = []
    command = [sys.executable, "-m", "tests.parallel.devices", *ASKED]
    common = {**os.environ, "JAX_PLATFORMS": "cpu", "PROCESSES": str(PROCESSES), "PORT": str(free_port())}
    started = [
        subprocess.Popen(
            command, env={**common, "PROCESS": str(n)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for n in range(PROCESSES)
    ]
    try:
        for one in started:
            out, errors = one.communicate(timeout=600)
            assert one.returncode == 0, errors[-4000:]
            found.append([json.loads(line) for line in out.splitlines() if line.startswith("{")])
    finally:
        for one in started:
            one.kill()
            one.communicate()
    for answers in found:
        assert [x["asked"] for x in answers] == list(ASKED)
        for x in answers:
            value, *derivatives = x["gaps"]
            assert value < OUT, x
            assert max(derivatives) < GRADIENTS, x
