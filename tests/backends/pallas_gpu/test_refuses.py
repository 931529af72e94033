"""What the GPU kernels refuse, and in which order the reasons come."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jattn import mods, normalizers, scores
from jattn._call import targets
from jattn._call.targets import Target
from jattn.backends.pallas_gpu import PALLAS_GPU
from jattn.backends.pallas_gpu.refuses import unfit, unfit_capability, unfit_problem
from tests.problems import problem

NEW = jax.__version_info__ >= (0, 11)


def _problem(d=128, e=128, dtype="bfloat16", **options):
    q, k, v = ((2, 128, 4, d), (2, 128, 2, d), (2, 128, 2, e))
    return problem((jnp.zeros(q, dtype), jnp.zeros(k, dtype), jnp.zeros(v, dtype)), options)


def _unfit(target: Any = "h100", **options):
    return unfit(_problem(**options), targets.named(target) if isinstance(target, str) else target)


def test_the_platform_comes_first():
    wrong = {"dtype": "float32", "d": 512, "normalizer": normalizers.sparsemax()}
    assert _unfit(Target("cpu"), **wrong) == "runs on GPU, not cpu; JATTN_INTERPRET=1 simulates it, slowly"
    assert _unfit("v5e", **wrong) == "runs on GPU, not tpu; JATTN_INTERPRET=1 simulates it, slowly"


@pytest.mark.skipif(NEW, reason="this jax is new enough")
@pytest.mark.parametrize("target", ["h100", Target("cpu", None, True), Target("gpu", None, False, (7, 5))])
def test_an_old_jax_comes_next(target):
    assert _unfit(target) == f"needs jax 0.11 or newer, Python 3.12 (this is jax {jax.__version__})"


@pytest.mark.parametrize(
    ("capability", "reason"),
    [
        (None, "runs on NVIDIA's GPUs alone"),
        ((7, 5), "not sm_75, which has neither tensor cores for bfloat16 nor asynchronous copies"),
        ((7, 0), "not sm_70"),
        ((12, 0), "not yet for sm_120"), ((8, 7), "not yet for sm_87"),
        ((8, 0), None), ((8, 6), None), ((8, 9), None), ((9, 0), None), ((10, 0), None),
    ],
)  # fmt: skip
def test_the_machine(capability, reason):
    got = unfit_capability(capability)
    assert got is None if reason is None else reason in str(got)


@pytest.mark.skipif(not NEW, reason="jax 0.11 or newer, Python 3.12")
def test_the_simulator_stands_for_any_machine():
    assert _unfit(Target("cpu", None, True)) is None
    assert _unfit("h200") is None and _unfit("a100") is None and _unfit("l4") is None


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"normalizer": normalizers.sparsemax(), "d": 512}, "has no kernel for normalizer sparsemax"),
        (
            {"score": scores.additive(jnp.ones((128, 8)), jnp.ones((128, 8)), jnp.ones(8)), "dtype": "float32"},
            "score additive",
        ),
        ({"dtype": "float32", "d": 512}, "TF32"),
        ({"d": 576, "e": 512}, "up to 256, not d 576 and e 512"),
        ({"d": 64, "e": 264}, "up to 256, not e 264"),
        ({"d": 192, "e": 128}, None), ({"d": 1, "e": 256}, None), ({"dtype": "float16"}, None),
    ],
)  # fmt: skip
def test_the_problem(options, reason):
    got = unfit_problem(_problem(**options))
    assert got is None if reason is None else reason in str(got)


def test_it_is_not_chosen_before_a_run_confirms_it():
    assert PALLAS_GPU.untried == "compiled and simulated, not yet run on this chip"


@pytest.mark.skipif(not NEW, reason="jax 0.11 or newer, Python 3.12")
@pytest.mark.parametrize(("target", "d", "most"), [("h100", 128, 8), ("b200", 128, 8), ("l4", 128, 12), ("l4", 256, 2)])
def test_operands_of_pairs_that_shared_memory_has_no_room_for(target, d, most):
    biases = lambda n: tuple(mods.bias(jnp.zeros((128, 128)), "ts") for _ in range(n))
    assert _unfit(target, d=d, e=d, mods=biases(most)) is None
    reason = _unfit(target, d=d, e=d, mods=biases(most + 1))
    assert str(reason).startswith(
        f"has no room in shared memory for tiles of {most + 1} operands with both axes t and s"
    )
