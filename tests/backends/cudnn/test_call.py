"""What is done around cuDNN's calls, with a stand-in for them: values, lse, every derivative, and NaN where nobody
looks."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

import jattn
from jattn import masks
from jattn._call import targets
from jattn.backends.blockwise import BLOCKWISE
from jattn.backends.contract import Gradients
from jattn.backends.cudnn import CUDNN
from jattn.backends.cudnn.refuses import unfit
from jattn.backends.cudnn.settings import Settings
from tests.backends.cudnn import stand_in
from tests.cases import CASES, SIZES, Draw, Sizes, make
from tests.evaluate import QUICK, assert_agree, evaluate
from tests.problems import problem
from tests.tolerances import assert_close

H100 = targets.named("h100")
TAKEN = [
    "plain", "dot-scale", "causal", "prefix", "prefix-nothing", "lengths", "sinks", "one-query", "one-key-head",
    "no-groups",
]  # fmt: skip


def _make(name, dtype):
    return make(name, dtype, dataclasses.replace(SIZES.get(name, Sizes()), d=8, e=8, key_width=8))


def _backend(**settings):
    """The record with the stand-in below it, which any dtype and machine does for."""
    made = Settings(stand_in.forward, stand_in.backward, **settings)
    return dataclasses.replace(CUDNN, refuses=lambda problem, target: None, settings=made)


@pytest.fixture
def backend():
    return _backend()


def test_which_cases_it_takes():
    assert [name for name in CASES if unfit(problem(*_make(name, "bfloat16")), H100) is None] == TAKEN


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", TAKEN)
def test_every_case_that_it_takes(name, backend):
    inputs = _make(name, jnp.float64)
    wanted = evaluate(inputs, "reference")
    got = evaluate(inputs, backend)
    assert_agree(got, wanted, "float64")
    assert_close(got.slope, got.slope_from_gradients, 1e-11, "forward mode")


MASKS = {
    "none": lambda b, t, s: None,
    "causal": lambda b, t, s: masks.causal(),
    "window": lambda b, t, s: masks.causal() & masks.window(3),
    "lengths": lambda b, t, s: masks.lengths(jnp.array([0, 5, s]), jnp.array([t, t + 9, 2])),
    "causal-lengths": lambda b, t, s: masks.causal() & masks.lengths(jnp.array([4, 5, 99]), jnp.array([t, 7, 0])),
    "window-lengths": lambda b, t, s: masks.window(3) & masks.prefix(jnp.array([4, 1, 12])),
    "numbers": lambda b, t, s: masks.prefix(jnp.array(7)) & masks.lengths(9, 5) & masks.causal(),
}


def _nan(spec, q, k, v, *rest):
    return Gradients(*(jnp.full_like(x, jnp.nan) for x in (q, k, v)), operands=[])


def _everything(arrays, cotangent, mask, implementation):
    """out, and gradients of q, k and v where lse has none."""

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(*arrays):
        out, pull = jax.vjp(lambda *x: jattn.attention(*x, mask=mask, implementation=implementation), *arrays)
        return out, *pull(cotangent)

    return run(*arrays)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("sizes", [(13, 17), (17, 13)])
@pytest.mark.parametrize("name", MASKS)
def test_gradients_of_out_alone_are_its_own(name, sizes):
    """Where lse has no gradient blockwise's are not used; what no query sees is NaN, and reaches nothing."""
    (t, s), b = sizes, 3
    mask = MASKS[name](b, t, s)
    x = Draw(Sizes(b=b, t=t, s=s, h=4, g=2, d=8, e=8), jnp.float64, 3)
    (q, k, v), cotangent = x.inputs(), x.normal("bthe")
    refusal = unfit(problem(tuple(y.astype("bfloat16") for y in (q, k, v)), {"mask": mask}), H100)
    if "window" in name and t > s:
        assert "no more queries than keys" in str(refusal)
        return
    assert refusal is None
    backend = _backend(of_lse=dataclasses.replace(BLOCKWISE, backward=_nan))
    live = jattn.weights(q, k, v, mask=mask)[:, 0] > 0
    rows, keys = live.any(2)[..., None, None], live.any(1)[..., None, None]
    poisoned = [jnp.where(y, z, jnp.nan) for y, z in ((rows, q), (keys, k), (keys, v))]
    got = zip(
        ("out", "dq", "dk", "dv"),
        _everything(poisoned, cotangent, mask, backend),
        _everything((q, k, v), cotangent, mask, "reference"),
        strict=True,
    )
    for which, y, z in got:
        assert_close(y, z, 1e-12, which)


@pytest.mark.usefixtures("x64")
def test_vmap_over_queries_shares_the_keys(backend):
    x = Draw(Sizes(b=2, t=6, s=6, h=2, g=1, d=8, e=8), jnp.float64, 4)
    (_, k, v), queries = x.inputs(), x.normal("bthd", scale=1.0)[None] * jnp.arange(1.0, 4.0)[:, None, None, None, None]

    def total(k, v, implementation):
        each = lambda q: jattn.attention(q, k, v, mask=masks.causal(), implementation=implementation)
        return jnp.sum(jnp.cos(jax.vmap(each)(queries)))

    for y, z in zip(*(jax.grad(total, (0, 1))(k, v, n) for n in (backend, "reference")), strict=True):
        assert_close(y, z, 1e-6, "gradients summed over the queries")


@pytest.mark.usefixtures("x64")
def test_second_derivatives(backend):
    x = Draw(Sizes(b=1, t=5, s=5, h=2, g=1, d=8, e=8), jnp.float64, 5)
    q, k, v = x.inputs()
    fn = lambda implementation: jax.hessian(
        lambda k: jnp.sum(jattn.attention(q, k, v, mask=masks.causal(), implementation=implementation) ** 2)
    )(k)
    assert_close(fn(backend), fn("reference"), 1e-11, "hessian")
