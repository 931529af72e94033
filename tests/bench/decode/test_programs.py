"""Everybody takes the same step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench.decode import _cpu, _programs
from bench.decode._cases import KINDS, WINDOW
from tests.bench.decode.small import small


@pytest.mark.parametrize("kind", KINDS)
def test_contenders_compute_the_same(kind):
    case = small(kind)
    given = _cpu.arrays(case)
    steps = {"jattn": _programs.jattn_step(case, "blockwise"), "jax": _programs.jax_step(case)}
    outs = {name: step(*given) for name, step in steps.items()}
    wanted = _programs.plain_step(case)(*given)
    for out in outs.values():
        np.testing.assert_allclose(out, wanted, rtol=2e-5, atol=2e-5)
    assert jnp.isfinite(wanted).all()


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_are_those_of_the_program(kind):
    case = small(kind)
    out = jax.eval_shape(_programs.jattn_step(case, "blockwise"), *_programs.shapes(case, jnp.float32))
    assert out.shape == (case.b, 1, case.h, case.d)


def test_a_query_sees_its_own_key_and_those_before_it():
    (full,) = {tuple(x) for x in np.asarray(_programs.seen(small("contiguous")))[:, 0, 0].tolist()}
    assert [n for n, x in enumerate(full) if x] == list(range(37))
    of_window = np.asarray(_programs.seen(small("window", fill=1500, n=2048)))[0, 0, 0]
    assert np.flatnonzero(of_window).tolist() == list(range(1500 - WINDOW, 1500))


def test_pages_are_a_permutation_of_the_pool():
    case = small("paged")
    pages = _programs.table(case)
    assert pages.shape == (case.b, 64 // 16)
    assert sorted(pages.flatten().tolist()) == list(range(8))
