"""Keys and values of 8 bits in the GPU kernels, on the simulator: widened in the kernel for few queries, cast before it
for many."""

# The type checker sees jax 0.10, and Mosaic is that of 0.11 and later.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import masks
from jattn._call import targets
from jattn._call.problem import reduce
from jattn._call.scales import applied
from jattn.backends.contract import Spec
from jattn.backends.pallas_gpu import PALLAS_GPU
from tests.problems import problem
from tests.tolerances import TOLERANCES, assert_close

if jax.__version_info__ < (0, 11):
    pytest.skip("the GPU kernels are not simulated: jax 0.11 is needed", allow_module_level=True)

pytestmark = pytest.mark.gpu

B, S, H, G = 2, 300, 8, 2


@pytest.fixture(autouse=True)
def _simulated(monkeypatch):
    monkeypatch.setenv("JATTN_INTERPRET", "1")
    yield
    from jax._src.pallas.mosaic_gpu.interpret.interpret_pallas_call import reset_gpu_interpret_mode_state

    reset_gpu_interpret_mode_state()


def _inputs(dtype="int8", t=1, d=64, e=64, lead=(B, S), query="bfloat16", g=G):
    """q, k, v and scales; the greatest numbers that are stored are among them."""
    random = np.random.default_rng(0)
    q = jnp.asarray(random.standard_normal((B, t, H, d)), query)

    def stored(width):
        x = random.integers(-128, 128, (*lead, g, width))
        return jnp.asarray(x if dtype == "int8" else x / 32, dtype)

    scale = lambda: jnp.asarray((0.5 + random.random((*lead, g))) * (0.01 if dtype == "int8" else 0.3), jnp.float32)
    return q, stored(d), stored(e), (scale(), scale())


def _wanted(q, k, v, scales, table=None, **options):
    """The definition in float32, of keys and values as they are meant."""
    k, v = (x.astype(jnp.float32) * c[..., None] for x, c in zip((k, v), scales, strict=True))
    if table is not None:
        k, v = (x[table].reshape(B, -1, *x.shape[2:]) for x in (k, v))
    wide = q.astype(jnp.float32)
    return jattn.attention(wide, k, v, implementation="reference", return_lse=True, **options)


def _check(q, k, v, scales, table=None, **options):
    pages = {} if table is None else {"pages": table}
    attend = jax.jit(
        lambda q, k, v, scales: jattn.attention(
            q, k, v, scales=scales, implementation="pallas_gpu", return_lse=True, **options, **pages
        )
    )
    got, wanted = attend(q, k, v, scales), _wanted(q, k, v, scales, table, **options)
    assert got[0].dtype == q.dtype
    tolerance = TOLERANCES[q.dtype.name].value
    for one, other in zip(got, wanted, strict=True):
        assert_close(one, other, 4 * tolerance)
    return got


LENGTHS = jnp.array([257, 31], jnp.int32)


@pytest.mark.parametrize(
    ("dtype", "sizes"),
    [
        ("int8", {}),
        ("int8", {"g": 4, "t": 2}),  # their scales are copied together
        ("float8_e4m3fn", {"t": 3, "e": 32, "g": 8}),
        ("float8_e5m2", {"query": "float16"}),
        ("int8", {"d": 256, "e": 256}),
        ("int8", {"t": 40, "d": 80, "e": 48}),  # of many queries they are cast before the kernel
    ],
    ids=["int8", "four-heads", "float8", "other-float8", "wide", "many-queries"],
)
def test_stored_in_a_row(dtype, sizes):
    _check(*_inputs(dtype, **sizes), mask=masks.lengths(LENGTHS))


@pytest.mark.parametrize("page", [16, 128])
def test_stored_in_pages(page):
    many = -(-S // page)
    inputs = _inputs(lead=(B * many, page), g=4)
    table = np.random.default_rng(1).permutation(B * many).reshape(B, many).astype(np.int32)
    _check(*inputs, table=table, mask=masks.lengths(LENGTHS))


@pytest.mark.parametrize(("chip", "t"), [("b200", 2), ("a100", 20)])
def test_other_machines(monkeypatch, chip, t):
    monkeypatch.setenv("JATTN_INTERPRET", chip)
    _check(*_inputs(t=t, g=8), mask=masks.lengths(LENGTHS))


@pytest.mark.parametrize(("chip", "d", "where"), [("a100", 64, "64 on Ampere"), ("h100", 80, "64 and 80 on Hopper")])
def test_what_would_be_cast_for_each_step_is_refused(monkeypatch, chip, d, where):
    monkeypatch.setenv("JATTN_INTERPRET", chip)
    q, k, v, scales = _inputs(d=d)
    with pytest.raises(jattn.UnsupportedError, match=f"not of width {where}"):
        jattn.attention(q, k, v, scales=scales, implementation="pallas_gpu")


@pytest.mark.parametrize("chip", ["h100", "b200"])
@pytest.mark.parametrize("t", [1, 40])
def test_who_makes_more_of_them(monkeypatch, chip, t):
    """Few queries see them where they lie: no array in 16 bits is made of the keys."""
    monkeypatch.setenv("JATTN_INTERPRET", chip)
    q, k, v, scales = _inputs(t=t, lead=(B, 304))
    attend = lambda k: jattn.attention(q, k, v, scales=scales, implementation="pallas_gpu")
    made = f"tensor<{B}x304x{G}x64xbf16>" in jax.jit(attend).lower(k).as_text()
    assert made == (t == 40)


def test_no_races():
    """As in `test_kernels`, with no more tiles than stand in memory at once."""
    from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call
    from jax.experimental.pallas import mosaic_gpu as plgpu

    q, k, v, scales = _inputs(lead=(B, 120), g=4)
    posed = problem((q, k, v), {"scales": scales})
    q, k, v, operands, signature = reduce(applied(posed))
    target = targets.Target("cpu", None, plgpu.InterpretGPUParams(detect_races=True))
    spec = Spec(PALLAS_GPU, signature, q.dtype, None, None, target)
    PALLAS_GPU.forward(spec, q, k, v, operands)
    assert not interpret_pallas_call.get_races().races_found


def test_one_of_the_two():
    q, k, v, (of_keys, of_values) = _inputs()
    _check(q, k, v.astype(q.dtype), (of_keys, of_values))
    _check(q, k.astype(q.dtype), v, (of_keys, of_values))


def test_what_nobody_sees_reaches_nothing():
    """NaN in stored numbers and in scales beside the keys that are seen, and a row that sees nothing."""
    q, k, v, scales = _inputs("float8_e4m3fn", g=4)
    lengths = jnp.array([130, 0], jnp.int32)
    seen = jnp.arange(S)[:, None] < lengths[:, None, None]
    k, v = (jnp.where(seen[..., None], x, jnp.full_like(x, jnp.nan)) for x in (k, v))
    scales = tuple(jnp.where(seen, x, jnp.nan) for x in scales)
    clean = lambda x: jnp.where(jnp.isnan(x.astype(jnp.float32)), jnp.zeros_like(x), x)
    attend = lambda *arrays: jattn.attention(
        *arrays[:3], scales=arrays[3:], mask=masks.lengths(lengths), implementation="pallas_gpu"
    )
    got = attend(q, k, v, *scales)
    assert_close(got, attend(q, *map(clean, (k, v, *scales))), 0)
    assert not np.any(np.asarray(got[1], np.float32))


def test_gradients_and_a_batch_of_calls():
    """Of queries and scales; the numbers themselves have none."""
    q, k, v, scales = _inputs(t=2)

    def loss(implementation, q, *scales):
        out = jattn.attention(q, k, v, scales=scales, mask=masks.causal(S - 2), implementation=implementation)
        return jnp.sum(out.astype(jnp.float32) ** 2)

    got = jax.grad(lambda *x: loss("pallas_gpu", *x), (0, 1, 2))(q, *scales)
    for one, other in zip(got, jax.grad(lambda *x: loss("reference", *x), (0, 1, 2))(q, *scales), strict=True):
        size = float(jnp.max(jnp.abs(other.astype(jnp.float32))))
        assert_close(one / size, other / size, 4 * TOLERANCES["bfloat16"].gradient)
    attend = lambda q, k: jattn.attention(q, k, v, scales=scales, implementation="pallas_gpu")
    together = jax.vmap(attend)(jnp.stack([q, -q]), jnp.stack([k, k[:, ::-1]]))
    assert_close(together[1], attend(-q, k[:, ::-1]), 0)
