"""`python -m bench gpu --static`: its table, and a kernel compiled for a GPU that is not there."""

import json

import pytest
from jattn_kernels.chips import GPUS

from bench.gpu import _static, _tools
from bench.gpu._cases import Case
from tests.bench.gpu.fakes import COMMAND


def _case(ask: str, direction: str = "fwdbwd", d: int = 128, chip: str = "h100") -> Case:
    return Case(ask, 2, 4096, 8, d, direction, chip)


def test_a_table_of_kernels(tmp_path, capsys):
    cases = [_case(ask) for ask in ("plain", "bias", "user")]
    assert _static.run(cases, ["jattn", "mgpu"], tmp_path, COMMAND) == 0
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines() if line.startswith("h100 ")]
    assert lines[0][:11] == ["h100", "plain", "128", "jattn", "forward", "168", "0", "0", "97.7", "1", "64"]
    assert lines[0][-9:] == ["382", "382", "1024", "382", "528", "0", "300", "tensor", "0.139"]
    assert lines[1][4:8] == ["dkv", "168", "24", "2"]
    assert ["h100", "bias", "128", "jattn", "fwdbwd:", "RuntimeError:", "too", "much", "shared", "memory"] in lines
    assert ["h100", "user", "128", "jattn", "fwdbwd:", "NotImplementedError:", "no", "backward"] in lines
    assert "local loads or stores in a hot loop: jattn h100-plain-d128-dkv" in printed
    assert "h100-plain-d128-forward: jattn 382 / 382, mgpu 382 / 382 instructions full / partial" in printed
    document = json.loads((tmp_path / "static.json").read_text())
    assert document["complete"]
    names = [(row["contender"], row["name"]) for row in document["rows"]]
    assert ("jattn", "h100-user-d128-forward") in names  # without its gradients
    assert {"static.json", "static.txt", "static.png"} == {path.name for path in tmp_path.iterdir()}


def test_the_compilers_environment(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--one")
    monkeypatch.setenv("JATTN_INTERPRET", "1")
    got = _static.environment("/somewhere")
    assert got["XLA_FLAGS"] == "--one --xla_gpu_autotune_level=0"
    assert got["MOSAIC_GPU_DUMP_TO"] == "/somewhere"
    assert got["JATTN_INTERPRET"] == "0"
    assert got["JAX_ENABLE_COMPILATION_CACHE"] == "false"


@pytest.mark.skipif(bool(_tools.obstacle()), reason=f"nothing compiles for GPUs here: {_tools.obstacle()}")
@pytest.mark.gpu
@pytest.mark.parametrize(
    ("ask", "chip", "most"),
    [
        ("causal", "h100", {"forward": (471, 637), "dq": (405, 500), "dkv": (405, 500)}),
        ("all", "h100", {}),
        ("relative", "h100", {"dbias": (700, 850)}),
        ("relative", "b200", {"dbias": (700, 850)}),
        ("causal", "b200", {"forward": (360, 520), "dq": (205, 305), "dkv": (250, 345)}),
    ],
)
def test_our_kernels_are_compiled_and_counted(ask, chip, most):
    """Instructions of a 64 x 128 tile forward and of a 64 x 64 one backward, at most, full and partial.

    Gradients of a table of diagonals have a kernel of their own.
    """
    case = _case(ask, chip=chip)
    rows = {str(row.role): row for row in _static.rows_of(case, "jattn")}
    assert set(rows) == {"forward", "dq", "dkv", *most}
    for row in rows.values():
        assert row.error is None
        assert row.kernel is not None
        assert row.kernel.registers == 168
    for role, (full, partial) in most.items():
        estimate = rows[role].estimate
        assert estimate is not None
        assert estimate.full.instructions <= full
        assert estimate.partial.instructions <= partial


@pytest.mark.skipif(bool(_tools.obstacle()), reason=f"nothing compiles for GPUs here: {_tools.obstacle()}")
@pytest.mark.gpu
def test_those_of_ampere_are_compiled_and_do_not_spill():
    """Of 64 x 128 scores forward, whose products alone are 256 instructions, and of 64 x 64 backward."""
    rows = {str(row.role): row for row in _static.rows_of(_case("causal", chip="a100"), "jattn")}
    most = {"forward": (1010, 1210), "dq": (570, 700), "dkv": (770, 910)}
    assert set(rows) == set(most)
    for role, (full, partial) in most.items():
        kernel, estimate = rows[role].kernel, rows[role].estimate
        assert kernel is not None and estimate is not None
        assert kernel.spilled == 0 and kernel.blocks_per_core(GPUS["a100"]) == 2
        assert estimate.full.instructions <= full
        assert estimate.partial.instructions <= partial


@pytest.mark.skipif(bool(_tools.obstacle()), reason=f"nothing compiles for GPUs here: {_tools.obstacle()}")
@pytest.mark.parametrize("ask", ["plain", "causal"])
def test_jaxs_own_kernel_is_compiled_and_counted(ask):
    rows = _static.rows_of(_case(ask, d=64), "mgpu")
    assert sorted(str(row.role) for row in rows) == (["dkv", "dq", "forward"] if ask == "plain" else ["forward"])
    for row in rows:
        assert row.error is None
        assert row.kernel is not None
        assert row.estimate is not None
        assert row.kernel.threads == 384
        assert row.kernel.shared
        assert row.estimate.columns in (64, 128)
        assert 150 < row.estimate.full.instructions < 600
        masked = row.estimate.partial.instructions - row.estimate.full.instructions
        assert (masked > 50) == (ask == "causal")
