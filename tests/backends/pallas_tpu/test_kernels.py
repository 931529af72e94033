"""The TPU kernels: interpreted, against the reference in float64; and their lists of work."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jattn_kernels.tpu.sizes import TileSizes

import jattn
from jattn._call import targets
from jattn._call.problem import reduce
from jattn.backends.contract import Spec
from jattn.backends.pallas_tpu import PALLAS_TPU
from jattn.backends.pallas_tpu.settings import Settings
from tests.cases import CASES, Sizes, make
from tests.evaluate import check_dtype, evaluate, widen
from tests.problems import problem
from tests.tolerances import assert_close

SMOKE = {"causal", "everything"}
LARGE = Sizes(t=150, s=270, d=8, e=16)
SMALL_TILES = TileSizes(128, 128, 128, 256)
TRANSPOSED_TILES = TileSizes(
    256, 128, 128, 256, rows=128, wide=True, newton=True, transposed_dq=True, transposed_dkv=True
)


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setenv("JATTN_INTERPRET", "1")


def _refusal(inputs):
    return PALLAS_TPU.refuses(problem(*inputs), targets.current())


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("name", [pytest.param(x, marks=pytest.mark.smoke) if x in SMOKE else x for x in CASES])
def test_every_case(name):
    inputs = make(name, "float32")
    refusal = _refusal(inputs)
    if refusal is None:
        check_dtype(inputs, "pallas_tpu", "float32")
        return
    assert "additive" in refusal or "normalizer" in refusal
    with pytest.raises(jattn.UnsupportedError, match="pallas_tpu"):
        jattn.attention(*inputs[0], implementation="pallas_tpu", **inputs[1])


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("name", ["everything", "cosine-learned-scale", "causal", "segments"])
def test_bfloat16(name):
    check_dtype(make(name, "bfloat16"), "pallas_tpu", "bfloat16", lse="bfloat16")


@pytest.mark.usefixtures("interpreted")
def test_bfloat16_with_the_scale_in_float32():
    """By default the scale is a factor of the query, rounded to its dtype; `precision="highest"` asks for more."""
    arrays, options = make("causal", "bfloat16")
    check_dtype((arrays, {**options, "precision": "highest"}), "pallas_tpu", "bfloat16")


WAYS = {
    "plain": Settings(SMALL_TILES, SMALL_TILES),
    "transposed": Settings(TRANSPOSED_TILES, TRANSPOSED_TILES),
    "runs": Settings(SMALL_TILES, SMALL_TILES, lists=False),  # as where lists of tiles do not fit in scalar memory
}


@pytest.fixture(params=WAYS)
def small_tiles(request):
    """Several query tiles, key tiles and chunks of keys at sizes that the interpreter can do."""
    return dataclasses.replace(PALLAS_TPU, settings=WAYS[request.param])


SEVERAL = ["causal", "segments", "nested", "relative", "bias-every-axes", "everything", "blocks-heads"]


@functools.cache  # each way has the same
def _wanted(name):
    with jax.enable_x64(True):
        return evaluate(make(name, "float64", LARGE), "blockwise", forward_mode=False)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("name", SEVERAL)
def test_several_tiles_and_chunks(name, small_tiles):
    """Against blockwise in float64: rows, keys and chunks hang over the ends of the arrays."""
    inputs = make(name, "float32", LARGE)
    got, wanted = evaluate(inputs, small_tiles, forward_mode=False), _wanted(name)
    assert_close(got.out, wanted.out, 1e-5, "out")
    assert_close(got.lse, wanted.lse, 1e-5, "lse")
    for which, x, y in zip(got.names, got.gradients, wanted.gradients, strict=True):
        assert_close(x, y, 1e-5 * max(1.0, float(np.abs(y).max(initial=0))), f"gradient of {which}")


@pytest.mark.parametrize("name", ["causal", "everything", "bias"])
def test_memory_is_written_before_it_is_read(name):
    """The simulator starts every memory with NaN and looks for races between copies and kernels."""
    from jax.experimental.pallas import tpu as pltpu

    backend = dataclasses.replace(PALLAS_TPU, settings=WAYS["plain"])
    q, k, v, operands, signature = reduce(problem(*make(name, "float32", LARGE)))
    simulated = pltpu.InterpretParams(uninitialized_memory="nan", detect_races=True)

    def run(interpret):
        spec = Spec(backend, signature, q.dtype, None, None, targets.Target("cpu", None, interpret))
        result = backend.forward(spec, q, k, v, operands)
        active = [jnp.issubdtype(x.dtype, jnp.floating) for x in operands]
        dlse = jnp.where(jnp.isfinite(result.lse), jnp.cos(result.lse), 0)
        return backend.backward(spec, q, k, v, operands, result, jnp.sin(result.out), dlse, active), result

    got, wanted = (jax.jit(functools.partial(run, x))() for x in (simulated, True))
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        if jnp.issubdtype(y.dtype, jnp.floating):
            # the two add up in different orders: an array is as exact as its largest number, sums that cancel are not
            largest = max(1.0, float(jnp.max(jnp.where(jnp.isfinite(y), jnp.abs(y), 0), initial=0)))
            assert_close(x / largest, y / largest, 4e-6)
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call

    races = interpret_pallas_call.races
    assert races is not None and not races.races_found


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("name", ["plain", "everything", "blocks-heads"])
def test_where_64_bits_are_on(name):
    """Kernels have none: all is computed as without them, and gradients have the dtypes of their arrays."""
    narrow = evaluate(make(name, "float32"), "pallas_tpu", forward_mode=False)
    with jax.enable_x64(True):
        arrays, options = make(name, "float32")
        options = jax.tree.map(lambda x: x.astype(jnp.int32) if x.dtype == jnp.int64 else x, widen(options))
        got = evaluate((arrays, options), "pallas_tpu", forward_mode=False)
    for x, y in zip((got.out, *got.gradients), (narrow.out, *narrow.gradients), strict=True):
        assert_close(x, y, 1e-5)
