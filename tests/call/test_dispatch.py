"""Which backend a call gets, and what a profile shows of it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jattn_kernels import tables

import jattn
from jattn import masks, normalizers
from jattn._call import dispatch, targets
from jattn.backends.blockwise import BLOCKWISE
from jattn.backends.cudnn import CUDNN
from jattn.backends.pallas_gpu import PALLAS_GPU
from tests.problems import problem

Q = jnp.ones((1, 4, 2, 3))
H100 = targets.named("h100")
HERE = "`python -m bench gpu --check` tries it here"


def _problem(dtype="bfloat16", **options):
    x = jnp.ones((1, 256, 2, 64), dtype)
    return problem((x, x, x), options)


def _run(**changes):
    run = tables.Confirmed(
        "h100", "cudnn", "bfloat16", tables.PASSES, "NVIDIA H100 PCIe", "2026-12-31", "runs/h100.json"
    )
    return run._replace(**changes)


def test_nothing_is_chosen_unasked_that_no_run_has_confirmed():
    got = dispatch.choose(_problem(), None, H100, ())
    assert got.backend is BLOCKWISE
    assert got.others["cudnn"] == f"{CUDNN.untried}: implementation='cudnn' insists, {HERE}"
    assert got.evidence is None


@pytest.mark.parametrize(
    "other",
    [
        {"chip": "a100"}, {"backend": "pallas_gpu"}, {"dtype": "float16"}, {"passes": ("backward",)},
    ],
)  # fmt: skip
def test_a_run_confirms_its_own_generation_backend_dtype_and_pass(other):
    assert dispatch.choose(_problem(), None, H100, [_run()]).backend is CUDNN
    assert dispatch.choose(_problem(), None, H100, [_run(**other)]).backend is not CUDNN
    assert dispatch.choose(_problem("float16"), None, H100, [_run()]).backend is BLOCKWISE
    assert dispatch.choose(_problem(), None, targets.Target("gpu", None, False, (8, 6)), [_run()]).backend is BLOCKWISE
    assert dispatch.choose(_problem(), None, H100._replace(interpret=True), [_run()]).backend is not CUDNN


def test_a_run_on_a_chip_of_the_same_capability_will_do_and_is_named():
    other = _run(chip="h200", device="NVIDIA H200")
    got = dispatch.choose(_problem(), None, H100, [other])
    assert got.backend is CUDNN and got.evidence == "confirmed (NVIDIA H200, 2026-12-31, runs/h100.json)"
    assert dispatch.choose(_problem(), None, H100, [other, _run()]).evidence == got.evidence.replace(
        "H200", "H100 PCIe"
    )
    assert dispatch.choose(_problem(), None, targets.Target("gpu", None, False, (9, 0)), [_run()]).backend is CUDNN


def test_what_it_refuses_no_run_makes_it_take():
    got = dispatch.choose(_problem(mask=masks.dilated(2)), None, H100, [_run()])
    assert got.backend is BLOCKWISE
    assert got.others["cudnn"].startswith("takes masks of causal(), windows")


def test_gradients_are_of_the_next_best_until_they_are_confirmed():
    got = dispatch.choose(_problem(), None, H100, [_run(passes=("forward",))])
    assert got.backend == dataclasses.replace(CUDNN, backward=BLOCKWISE.backward)
    run = "NVIDIA H100 PCIe, 2026-12-31, runs/h100.json"
    assert got.evidence == f"forward pass confirmed ({run}), gradients by blockwise"
    parts = [_run(passes=("forward",)), _run(passes=("backward",), date="2027-01-01")]
    both = dispatch.choose(_problem(), None, H100, parts)
    assert both.backend is CUDNN
    assert both.evidence == f"confirmed ({run}; backward {run.replace('2026-12-31', '2027-01-01')})"


@pytest.mark.smoke
@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="the GPU kernels take jax 0.11 and later")
def test_pages_are_gathered_until_a_run_has_read_some():
    run = _run(backend="pallas_gpu")
    choose = lambda asked, run: dispatch.choose(_problem(), asked, H100, [run]).backend
    assert choose(None, run) == dataclasses.replace(PALLAS_GPU, in_pages=None)
    assert choose(None, run._replace(passes=(*tables.PASSES, tables.PAGES))) is PALLAS_GPU
    assert choose("pallas_gpu", run) is PALLAS_GPU


@pytest.mark.smoke
@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="the GPU kernels take jax 0.11 and later")
@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
def test_keys_of_8_bits_are_for_others_until_a_run_has_read_some(dtype):
    run, posed = _run(backend="pallas_gpu"), _problem()
    key, value = (jnp.zeros(x.shape, dtype) for x in (posed.key, posed.value))
    scale = jnp.ones(key.shape[:-1])
    posed = dataclasses.replace(posed, key=key, value=value, scales=(scale, scale))
    choose = lambda asked, run: dispatch.choose(posed, asked, H100, [run]).backend
    assert choose(None, run) is BLOCKWISE
    assert choose(None, run._replace(passes=(*tables.PASSES, tables.NARROW))).name == "pallas_gpu"
    assert choose("pallas_gpu", run) is PALLAS_GPU


def test_who_insists_gets_it_confirmed_or_not():
    got = dispatch.choose(_problem(), "cudnn", H100, ())
    assert got.backend is CUDNN
    assert got.evidence == CUDNN.untried
    assert got.others["blockwise"] == "was not asked for"


def test_the_first_that_is_confirmed_is_chosen():
    first = dataclasses.replace(CUDNN, name="first")
    got = dispatch.choose(_problem(), first, H100, [_run(backend="first")])
    assert got.backend is first and got.others["cudnn"] == "was not asked for"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_float32_is_not_rounded_to_tf32_on_a_gpu(dtype):
    x = jnp.ones((1, 64, 2, 16), dtype)

    def lowered(target, precision=None):
        given = problem((x, x, x), {"precision": precision})
        fn = lambda q: dispatch.run(dataclasses.replace(given, query=q), BLOCKWISE, None, target)[0]
        return jax.jit(fn).lower(x).as_text()

    whole = dtype == "float32"
    assert ("[HIGHEST, HIGHEST]" in lowered(H100)) == whole
    assert ("[DEFAULT, DEFAULT]" in lowered(H100)) == (not whole)
    assert "HIGHEST" not in lowered(targets.Target("cpu"))
    assert "HIGHEST" not in lowered(H100, "default")
    with jax.default_matmul_precision("tensorfloat32"):
        assert "HIGHEST" not in lowered(H100)


@pytest.mark.parametrize("implementation", ["blockwise", "reference"])
def test_profiles_name_the_backend_forward_and_backward(implementation):
    loss = lambda q: jnp.sum(jattn.attention(q, q, q, implementation=implementation))
    compiled = jax.jit(jax.grad(loss)).lower(Q).compile().as_text()
    names = [line for line in str(compiled).splitlines() if "op_name=" in line]
    scope = f"jattn.attention/{implementation}"
    assert any(scope in x and "transpose" in x for x in names)
    assert any(scope in x and "transpose" not in x for x in names)


def test_profiles_name_what_has_no_kernel_too():
    lowered = jax.jit(lambda q: jattn.attention(q, q, q, normalizer=normalizers.sparsemax())).lower(Q)
    assert "jattn.attention/blockwise" in str(lowered.compile().as_text())
