"""`python -m bench cpu`: its errors, and what it writes."""

import dataclasses
import json

import numpy as np
import pytest

from bench._report import write_json
from bench.cpu import _contenders, command
from tests.bench.cpu.recorded import recorded


def test_json_of_recorded_results(tmp_path):
    rows = recorded()
    path = tmp_path / "cpu.json"
    write_json(path, {"rows": [one.as_json() for one in rows]})
    document = json.loads(path.read_text())
    assert [one["name"] for one in document["rows"]] == [one.case.name for one in rows]
    assert document["rows"][0]["seconds"] == rows[0].seconds
    assert command.jattn_seconds(document) == {one.case.name: 0.1 for one in rows}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--filter", "nothing"], "bench cpu: no case matches; names look like causal-t1024-d64-fwdbwd"),
        (["--t", "0"], "bench cpu: argument --t: '0' is not a positive integer"),
        (
            ["--mask", "casual"],
            "bench cpu: argument --mask: 'casual' is not a comma-separated choice of causal,",
        ),
        (["--nonsense"], "bench cpu: unrecognized arguments: --nonsense"),
        (["--baseline", "no/such.json"], "bench cpu: FileNotFoundError:"),
    ],
)
def test_errors_are_one_line(arguments, message, capsys):
    try:
        status = command.main(arguments, missing=lambda modules: [])
    except SystemExit as stop:
        status = stop.code
    printed = capsys.readouterr()
    assert (status, printed.out, printed.err.count("\n")) == (2, "", 1)
    assert printed.err.startswith(message)


def test_missing_torch_is_a_hint(capsys):
    assert command.main([], missing=lambda modules: [name for name in modules if name == "torch"]) == 2
    expected = "bench cpu: torch not installed: pip install -e '.[bench]', or choose --peers jax\n"
    assert capsys.readouterr().err == expected


JAX = dataclasses.replace(_contenders.PEERS["jax"], name="jattn")
ATTENDS = dict.fromkeys(["jattn", "jax"], _contenders.jax_attend)


def _main(arguments, jattn=JAX):
    """The command with jax.nn under jattn's name, and no large matrix product."""
    return command.main(arguments, jattn=jattn, products=lambda size, with_torch: {"jax": 1.0}, attends=ATTENDS)


ARGUMENTS = ["--peers", "jax", "--t", "64", "--d", "8", "--mask", "causal", "--pass", "fwd", "--rounds", "1"]


def test_cpu_end_to_end(tmp_path, capsys):
    assert _main([*ARGUMENTS, "--out", str(tmp_path)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "causal fwd 64 8 32 8" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cpu.json", "cpu.png", "cpu.txt"]
    document = json.loads((tmp_path / "cpu.json").read_text())
    assert document["complete"]
    assert [one["name"] for one in document["rows"]] == ["causal-t64-d8-fwd"]
    assert _main([*ARGUMENTS, "--out", str(tmp_path), "--baseline", str(tmp_path / "cpu.json")]) == 0
    assert "was/now" in capsys.readouterr().out


def test_a_wrong_result_fails_the_run(tmp_path, capsys):
    wrong = dataclasses.replace(JAX, arrays=lambda result: [np.asarray(x) + 1 for x in result])
    assert _main([*ARGUMENTS, "--out", str(tmp_path)], wrong) == 1
    printed = capsys.readouterr()
    assert printed.out.count("WRONG: jax") == 1
    assert "WRONG RESULTS: jattn disagrees with a peer in causal-t64-d8-fwd (jax)" in printed.err


def test_memory_table(tmp_path, capsys):
    assert _main(["--memory", "--t", "256,512", "--out", str(tmp_path)]) == 0
    assert "causal-t512-d64-fwdbwd" in capsys.readouterr().out
    rows = json.loads((tmp_path / "cpu_memory.json").read_text())["rows"]
    assert [one["name"] for one in rows] == [f"causal-t{t}-d64-{way}" for way in ("fwd", "fwdbwd") for t in (256, 512)]
    assert all(one["temp_bytes"]["jax"] >= 4 * 8 * 256**2 for one in rows)
