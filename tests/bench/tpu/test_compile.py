"""The process in which libtpu compiles."""

import importlib.util

import pytest

from bench.tpu import _compile
from bench.tpu._cases import Case
from tests.bench.tpu.estimates import CASE


def test_the_compilers_environment(tmp_path):
    got = _compile.environment(tmp_path)
    assert got["JAX_PLATFORMS"] == "cpu"
    assert f"--xla_jf_dump_to={tmp_path} --xla_jf_dump_llo_text=true" in got["LIBTPU_INIT_ARGS"]


def test_a_compiler_that_dies_is_an_answer():
    with _compile.Compiler(python="false") as compiler:
        assert compiler.count(CASE, "jattn", {})["error"].startswith("the compiler died with status 1")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_jattn_is_compiled_and_counted():
    with _compile.Compiler() as compiler:
        answer = compiler.count(Case("v5e", "causal", 1, 2, 512, 128, "fwd"), "jattn", {})
        wrong = compiler.count(Case("v5e", "causal", 1, 2, 512, 128, "fwd"), "jattn", {"forward": {"query": 100}})
    (kernel,) = answer["kernels"].values()
    assert kernel["products"] * 16 * 128 * 128 >= 2 * 2 * (512 * 512 // 2) * 128
    assert kernel["dma_bytes"] >= 4 * 2 * 512 * 128 * 2
    assert "error" in wrong
