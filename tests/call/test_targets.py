"""What a call is compiled for: which kernels run there."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jattn_kernels.chips import CHIPS, GPUS

import jattn
from jattn._call import targets
from jattn._call.targets import Target


@pytest.mark.parametrize("name", CHIPS)
def test_a_chip_by_its_name(name):
    target = targets.named(name)
    assert (target.chip, target.platform, target.interpret) == (name, CHIPS[name].platform, False)
    assert (target.tpu, target.gpu) == (name not in GPUS, name in GPUS)
    assert target.capability == (GPUS[name].capability if name in GPUS else None)


@pytest.mark.parametrize(
    ("device", "wanted"),
    [
        (("gpu", "NVIDIA H100 80GB HBM3", "9.0"), Target("gpu", "h100", False, (9, 0))),
        (("gpu", "NVIDIA GeForce RTX 4090", "8.9"), Target("gpu", None, False, (8, 9))),
        (("gpu", "Tesla T4", "7.5"), Target("gpu", None, False, (7, 5))),
        (("gpu", "AMD Instinct MI300X", "gfx942"), Target("gpu", None, False, None)),
        (("tpu", "TPU v5 lite", None), Target("tpu", "v5e", False, None)),
        (("cpu", "cpu", None), Target("cpu", None, False, None)),
    ],
)
def test_a_device(monkeypatch, device, wanted):
    fields = dict(zip(("platform", "device_kind", "compute_capability"), device, strict=True))
    monkeypatch.delenv("JATTN_INTERPRET", raising=False)
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(**{k: v for k, v in fields.items() if v})])
    assert targets.current() == wanted


def test_the_simulator_takes_the_chip_that_is_named(monkeypatch):
    monkeypatch.setenv("JATTN_INTERPRET", "b200")
    assert targets.current() == Target("cpu", "b200", True, (10, 0))


def test_kernels_of_both_families_are_interpreted_where_asked_and_tpus_chosen(monkeypatch):
    x = jnp.ones((1, 16, 2, 16), jnp.bfloat16)
    monkeypatch.setenv("JATTN_INTERPRET", "1")
    target = targets.current()
    assert target.tpu and target.gpu and target.platform == "cpu"
    plan = jattn.explain(x, x, x)
    assert plan.backend == "pallas_tpu"
    assert not plan.others["pallas_gpu"].startswith("runs on GPU")
    assert plan.others["cudnn"] == "runs on GPU, not cpu"
    monkeypatch.setenv("JATTN_INTERPRET", "0")
    plan = jattn.explain(x, x, x)
    assert plan.backend == "blockwise"
    assert plan.others["pallas_gpu"] == "runs on GPU, not cpu; JATTN_INTERPRET=1 simulates it, slowly"
