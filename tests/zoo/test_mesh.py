"""Training on many devices: as on one, from any mesh to any other; what is refused, and before what."""

import json
import os
import subprocess
import sys

import jax
import pytest
from flax import nnx

from jattn.zoo import _mesh
from jattn.zoo.__main__ import main
from jattn.zoo._errors import UsageError
from jattn.zoo.text import data
from jattn.zoo.text.task import text
from tests.zoo.test_text import model


def test_eight_devices_learn_as_one_does_and_another_mesh_goes_on(tmp_path):
    command, environment = (
        [sys.executable, "-m", "tests.zoo.many", str(tmp_path)],
        {**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert max(found["losses"]) < 1e-5
    assert max(found["params"]) < 1e-5
    assert "many: going on from step 2" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--mesh", "data=8,sequence=16"], "takes 128 devices, of which there are 2 here; XLA_FLAGS=--xla_force"),
        (["--mesh", "time=2"], "counts of data, model, sequence, as data=2,sequence=4, got 'time=2'"),
        (["--mesh", "data=2,data=2"], "got 'data=2,data=2'"),
        (["--mesh", "data=0"], "got 'data=0'"),
    ],
)
def test_wrong_meshes_are_refused_in_one_line_before_data_is_made(tmp_path, capsys, arguments, words):
    assert main(["text", "--out", str(tmp_path / "out"), *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--length", "511"], "sequence=2 does not divide the 511 bytes of a sequence (--length)"),
        (["--length", "512", "--sequences", "3"], "data=2 does not divide the 3 sequences of a step (--sequences)"),
    ],
)
def test_what_an_axis_does_not_divide_is_said(tmp_path, capsys, flags, words):
    axis = words.partition(" ")[0]
    assert main(["text", "--out", str(tmp_path), "--mesh", axis, *flags]) == 2
    assert words in capsys.readouterr().err


def test_what_an_axis_does_not_divide_is_said_before_data_is_looked_at():
    """Of a corpus without a byte it would be said that it is too short."""
    with pytest.raises(UsageError, match="does not divide the 511 bytes"):
        text(511, None, "rotary", 0, None, corpus=data.divide([]), mesh={"sequence": 2})


def test_where_there_are_no_other_hosts_it_is_said(monkeypatch):
    def initialize():
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr("jax.distributed.initialize", initialize)
    with pytest.raises(UsageError, match="--distributed: JAX finds no other hosts here .coordinator_address"):
        _mesh.check(None, True)


def test_heads_and_hidden_units_lie_along_model_and_nothing_else_does():
    """Layers come first, since blocks are stacked; of an optimizer's state as of the parameters themselves."""
    params = nnx.state(model())
    found = jax.tree.map_with_path(_mesh._along_model, {"mu": params})
    along = {}
    for path, spec in jax.tree.leaves_with_path(found, is_leaf=lambda x: isinstance(x, jax.P)):
        if "model" in spec:
            along[next(key.key for key in reversed(path) if getattr(key, "key", "kernel") != "kernel")] = spec
    heads = jax.P(None, None, "model")
    assert along == {
        "query": heads, "key": heads, "value": heads, "out": jax.P(None, "model"),
        "mlp_in": heads, "mlp_out": jax.P(None, "model"),
    }  # fmt: skip
