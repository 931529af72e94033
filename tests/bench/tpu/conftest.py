"""A stand-in for the compiler, for the command lines."""

import pytest

from bench.tpu import command, tune
from tests.bench.tpu.estimates import counts


class StandIn:
    """A compiler that answers at once: splash's time depends on its tiles; jattn takes 1.2 ms."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def count(self, case, name, setting):
        forward, backward = setting.get("forward", {}), setting.get("backward", {})
        if setting.get("tiles", [0])[0] == 2048 or forward.get("query") == 2048:
            return {"error": "RuntimeError: too large"}
        if forward:  # the best are those with the other scheduler forward, of the smallest step
            both = counts(1000 if "scheduler" in forward else 2000), counts(backward["step"])
            return {
                "kernels": dict(zip((f"{name}_forward.1", f"{name}_backward.1"), both, strict=True)),
                "between_bytes": 0,
            }
        size = sum(setting.get("tiles", [1200]))
        return {"kernels": {f"{name}_forward.1": counts(1500 * size), f"{name}_backward.1": counts(3000000 - size)}, "between_bytes": 0}  # fmt: skip


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(command, "Compiler", StandIn)
    monkeypatch.setattr(tune, "Compiler", StandIn)
    monkeypatch.setattr(command, "missing", lambda modules: [])
    monkeypatch.setattr(tune, "missing", lambda modules: [])
    monkeypatch.setattr("bench.tpu._estimate._versions", lambda package: f"{package}==1")
