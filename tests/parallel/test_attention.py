"""A sequence over eight simulated devices: as on one, for every kind of mask, in both orders, by every strategy."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from jattn import masks, parallel

OUT, GRADIENTS = 2e-6, 2e-4

ASKED = (
    "causal::a", "causal::b", "window::b", "around::a", "segments-batch::d", "lengths::b", "nested::c",
    "blocks-heads::d", "dense::a", "function-operands::c", "everything::b", "gumbel::d", "positions-traced::c",
    "sinks-empty-rows:gather:b", "everything:all_to_all:e", "sparsemax::d", "inside::",
)  # fmt: skip


def run(*arguments: str, seconds: int = 1800) -> list[dict]:
    command = [sys.executable, "-m", "tests.parallel.devices", *arguments]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(x) for x in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def found():
    return {x["asked"]: x["gaps"] for x in run(*ASKED)}


@pytest.mark.parametrize("asked", [x for x in ASKED if x != "inside::"])
def test_as_on_one_device(found, asked):
    value, *derivatives = found[asked]
    assert value < OUT
    assert max(derivatives) < GRADIENTS


def test_inside_shard_map_in_bfloat16_twice_differentiated_and_with_explicit_axes(found):
    value, hessian, explicit, *own_rows = found["inside::"]
    assert value < 2**-7
    assert hessian < GRADIENTS
    assert explicit < OUT
    assert max(own_rows) < GRADIENTS


def test_placements_that_hypothesis_draws():
    for one in run("--drawn", "3"):
        value, *derivatives = one["gaps"]
        assert value < OUT, one
        assert max(derivatives) < GRADIENTS, one


# Errors come before anything is compiled: for them a mesh needs no devices

MESH = AbstractMesh((2, 8), ("batch", "sequence"))
Q = jnp.ones((2, 32, 4, 8))
WRONG = {
    "an option": ({"masks": None}, TypeError, "masks"),
    "a layout": ({"mask": masks.blocks(np.ones((2, 2), bool), 8)}, ValueError, "must cover t = 32"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use_is_said_before_compiling(name):
    given, error, words = WRONG[name]
    given = {"query": Q, "key": Q, "value": Q, "sequence_axis": "sequence", "mesh": MESH, **given}
    with pytest.raises(error, match=words):
        parallel.attention(given.pop("query"), given.pop("key"), given.pop("value"), **given)
