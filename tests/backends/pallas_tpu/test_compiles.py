"""What the TPU compiler makes of the kernels, for chips that are not here; and how large programs are."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jattn_kernels.chips import TPUS

from bench.decode._cases import Case
from bench.tpu._cases import Case as Walked
from bench.tpu._compile import Compiler
from jattn import masks
from jattn._call import dispatch, targets
from jattn.backends.pallas_tpu import PALLAS_TPU
from tests import aot
from tests.problems import problem


def _assert_compiles(chip, names):
    for got in aot.compile_all(chip, names):
        assert got.get("kernels") == 2, f"{chip} {got}"


@aot.needed
@pytest.mark.parametrize(
    ("chip", "names"),
    [
        ("v4", ["d64-t8192"]),
        ("v5e", ["d128-t1000", "pod"]),
        ("v5p", ["d256-t8192"]),
        ("v6e", ["d64-t1000"]),
        ("tpu7x", ["d128-t8192"]),
    ],
)
def test_it_compiles(chip, names):
    """Forward and backward with causal + segments + soft cap + bias + dropout, at one size for each generation."""
    _assert_compiles(chip, names)


@aot.needed
@pytest.mark.aot
@pytest.mark.parametrize("chip", TPUS)
def test_it_compiles_at_every_size(chip):
    _assert_compiles(chip, list(aot.CASES))


@aot.needed
@pytest.mark.parametrize(("kind", "page"), [("contiguous", None), ("paged", 16), ("int8", None)])
def test_a_step_of_decoding_copies_no_cache(kind, page):
    """What is around the kernel reads and writes next to nothing, and the kernel what is seen."""
    case = Case(kind, 2, 300, 1024, page=page)
    walked = Walked("v5e", "full", case.b, case.h, case.n, case.d, "fwd")
    with Compiler() as compiler:
        answer = compiler.count(walked, "decode", {"step": dataclasses.asdict(case), "contender": "jattn"})
    cache = 2 * case.b * case.n * case.g * case.d * (1 if kind == "int8" else 2)
    ((_, kernel),) = answer["kernels"].items()
    assert answer["between_bytes"] < cache / 20
    assert case.bytes(2) <= kernel["dma_bytes"] < cache / 1.5


@aot.needed
@pytest.mark.aot
def test_it_compiles_with_lists_that_no_memory_holds_and_with_layouts():
    _assert_compiles("v5e", [*aot.LONG, *aot.LAYOUTS])


def _lowered(mask, *, b=1, t=4096, h=8, g=8):
    """The program of all gradients for v5e, as text."""
    q, k = (jax.ShapeDtypeStruct((b, t, n, 128), jnp.bfloat16) for n in (h, g))

    def loss(q, k, v):
        out, _ = dispatch.run(problem((q, k, v), {"mask": mask}), PALLAS_TPU, None, targets.named("v5e"))
        return out.astype(jnp.float32).sum()

    text = jax.jit(jax.grad(loss, (0, 1, 2))).trace(q, k, k).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("@tpu_custom_call") == 2
    return text


@pytest.mark.parametrize("mask", [None, masks.causal(), masks.window(1023)], ids=["full", "causal", "window"])
def test_programs_do_not_grow_with_heads(mask):
    """Lists of tiles are constants of the program: none at all without a mask, and never one for each head."""
    few, many = (len(_lowered(mask, t=2**20, h=h, g=1)) for h in (1, 32))
    assert many < 1.1 * few
    assert few < 400_000


def test_programs_do_not_grow_with_layouts():
    bits = np.random.default_rng(0).random((8, 64, 64)) < 0.4
    plain, one, several = (len(_lowered(m)) for m in (None, masks.blocks(bits[0], 64), masks.blocks(bits, 64)))
    assert one < plain + 600_000
    assert several < one + 8 * 4 * bits.size
