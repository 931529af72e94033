"""Every case on every backend, against the reference in float64: values, lse and the gradient of every array."""

from __future__ import annotations

import functools

import hypothesis
import jax
import jax.numpy as jnp
import pytest
from hypothesis import strategies as st

import jattn
from jattn import gates, masks, mods
from jattn._call import targets
from jattn.backends import BACKENDS as RECORDS
from tests import strategies
from tests.cases import CASES, Draw, Sizes, make
from tests.evaluate import assert_agree, check_dtype, evaluate
from tests.problems import problem
from tests.tolerances import assert_close

BACKENDS = [x.name for x in RECORDS]
ALL_DTYPES = ("float32", "bfloat16", "float16")
SMOKE = {"causal", "everything", "sparsemax"}


def _refusal(backend, inputs):
    return next(x for x in RECORDS if x.name == backend).refuses(problem(*inputs), targets.current())


@functools.lru_cache(maxsize=8)
def _wanted(name):
    return evaluate(make(name, jnp.float64), "reference")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [pytest.param(x, marks=pytest.mark.smoke) if x in SMOKE else x for x in CASES])
def test_every_case_on_every_backend(name, backend):
    inputs = make(name, jnp.float64)
    refusal = _refusal(backend, inputs)
    if refusal is not None:
        with pytest.raises(jattn.UnsupportedError) as caught:
            jattn.attention(*inputs[0], implementation=backend, **inputs[1])
        message = str(caught.value)
        assert backend in message and refusal in message and "reference" in message
        return
    got = _wanted(name)
    if backend != "reference":
        got = evaluate(inputs, backend, (4, 5))
        assert_agree(got, _wanted(name), "float64")
    assert_close(got.slope, got.slope_from_gradients, 1e-11, "forward mode")


# each of these rows has arrays of a kind that the others do not have
LOW = [
    "everything",
    "concat-heads",
    "additive-heads-query",
    "cosine-learned-scale",
    "sparsemax",
    "sigmoid-learned-bias",
]


def _eligible(inputs):
    return [x for x in BACKENDS if _refusal(x, inputs) is None]


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("name", LOW)
def test_low_precision(name, dtype):
    inputs = make(name, dtype)
    for backend in _eligible(inputs):
        check_dtype(inputs, backend, dtype, None if backend == "reference" else (4, 5))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "options",
    [
        lambda x: {"mods": (mods.alibi(-0.02 * x.normal("h") ** 2),)},
        lambda x: {
            "mask": masks.function(lambda i, j: j == 4003),
            "gates": (gates.gaussian(x.normal("bt", scale=0, shift=4000), 3.0),),
        },
    ],
    ids=["alibi", "gaussian"],
)
def test_positions_are_not_rounded_to_the_dtype_of_an_operand(options, dtype):
    """These dtypes skip integers beyond 256 and 2048."""
    x = Draw(Sizes(b=1, t=2, s=4100, h=2, g=1), dtype, 0)
    inputs = x.inputs(), options(x)
    for backend in _eligible(inputs):
        check_dtype(inputs, backend, dtype)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("blocks", [(1, 1), (13, 4), (3, 17), (6, 16), (64, 64)])
def test_any_tile_size(blocks):
    for backend in _eligible(make("everything", jnp.float64)):
        if backend != "reference":
            got = evaluate(make("everything", jnp.float64), backend, blocks, forward_mode=False)
            assert_agree(got, _wanted("everything"), "float64")


@hypothesis.settings(max_examples=20)
@hypothesis.given(st.data())
def test_anything_that_composes(data):
    dtype = data.draw(st.sampled_from(["float64", *ALL_DTYPES]))
    sizes = data.draw(strategies.sizes())
    blocks = data.draw(strategies.TILES)
    with jax.enable_x64(dtype == "float64"):
        arrays = Draw(sizes, dtype, 0).inputs()
        inputs = arrays, data.draw(strategies.options(sizes, dtype))
        if dtype != "float64":
            # an operand's gradient may be a small difference of many rounded numbers: of q, k and v alone
            check_dtype(inputs, "blockwise", dtype, blocks, gradients=None if dtype == "float32" else 3)
            return
        got = evaluate(inputs, "blockwise", blocks)
        assert_agree(got, evaluate(inputs, "reference", forward_mode=False), dtype)
        assert_close(got.slope, got.slope_from_gradients, 1e-11, "forward mode")


@pytest.mark.smoke
def test_same_inputs_same_bits():
    arrays, options = make("everything", "float32")
    first, second = (jattn.attention(*arrays, **options, blocks=(4, 5)) for _ in range(2))
    assert (first == second).all()


@pytest.mark.parametrize("blocks", [(1, 1), (4, 5), (64, 64)])
def test_blocks_do_not_change_which_backend_is_chosen(blocks):
    arrays, options = make("causal", "float32")
    assert jattn.explain(*arrays, **options, blocks=blocks).backend == jattn.explain(*arrays, **options).backend


def test_a_backend_that_there_is_not_is_refused():
    arrays, options = make("causal", "float32")
    with pytest.raises(ValueError, match="implementation must be None or one of"):
        jattn.attention(*arrays, **options, implementation="fastest")
