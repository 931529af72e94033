"""The GPU kernels on the simulator: numbers, and races between copies and products."""

# The type checker sees jax 0.10, and Mosaic is that of 0.11 and later.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import gates, masks, mods
from jattn._call import targets
from jattn._call.problem import reduce
from jattn.backends.contract import Spec
from jattn.backends.pallas_gpu import PALLAS_GPU
from jattn.backends.pallas_gpu.refuses import unfit_problem, unfit_terms
from tests.cases import CASES, Sizes, make
from tests.evaluate import check_dtype
from tests.problems import problem
from tests.tolerances import TOLERANCES, assert_close

if jax.__version_info__ < (0, 11):
    pytest.skip("the GPU kernels are not simulated: jax 0.11 is needed", allow_module_level=True)

pytestmark = pytest.mark.gpu

LARGE = Sizes(b=1, t=150, s=201, h=2, g=1, d=32, e=16)  # several tiles each way, none of which are whole
ROUNDED = {
    "general", "general-heads", "cosine", "cosine-learned-scale", "concat", "concat-heads", "rectangular-general",
    "everything",
}  # fmt: skip
"""Scores whose query or key is computed: it is rounded to 16 bits before the product, and lse is as exact as that."""
SLACK = 4
"""Times the tolerances: weights and their gradients are rounded to 16 bits before the products that they are part of, and
the errors of a row add up."""


def _check(name, dtype, sizes=None):
    inputs = make(name, jnp.dtype(dtype), sizes)
    check_dtype(inputs, "pallas_gpu", dtype, lse=dtype if name in ROUNDED else None, slack=SLACK)


@pytest.fixture(autouse=True)
def _simulated(monkeypatch):
    monkeypatch.setenv("JATTN_INTERPRET", "1")
    yield
    from jax._src.pallas.mosaic_gpu.interpret.interpret_pallas_call import reset_gpu_interpret_mode_state

    reset_gpu_interpret_mode_state()  # of a test that failed: the next would wait for its threads


def _fits(name):
    posed = problem(*make(name, jnp.bfloat16))
    return unfit_problem(posed) is None and unfit_terms(posed) is None


SEVERAL_TILES = [
    "plain",
    "causal",
    "window",
    "segments-scattered",
    "blocks-heads",
    "everything",
    "bias-every-axes",
    "relative",
    "around",
]
SPECIAL = {
    "dot-scale", "general", "cosine", "concat", "causal-offset", "window-open", "segments", "prefix", "prefix-nothing",
    "not-dilated", "blocks", "softcap", "gaussian", "sinks",
}  # fmt: skip
"""Those of which another case is the general one: of each head, learned, traced or of each element of the batch."""


@pytest.mark.parametrize("name", [x for x in CASES if x not in {*SEVERAL_TILES, *SPECIAL} and _fits(x)])
def test_one_tile(name):
    _check(name, "bfloat16")


@pytest.mark.parametrize("name", SEVERAL_TILES)
def test_several_tiles(name):
    _check(name, "bfloat16", LARGE)


@pytest.mark.parametrize(
    "sizes",
    [
        Sizes(b=1, t=70, s=130, h=2, g=1, d=256, e=256),  # the two warpgroups share the keys
        Sizes(b=1, t=130, s=70, h=2, g=2, d=192, e=128),
        Sizes(b=1, t=64, s=128, h=1, g=1, d=40, e=72),  # filled up to what the matrix unit takes
    ],
    ids=str,
)
def test_widths(sizes):
    _check("softcap", "bfloat16", sizes)


@pytest.mark.parametrize("name", ["lengths", "causal-empty-rows", "sinks-empty-rows"])
def test_wide_heads(name):
    """On Hopper a product is under way before its tile's turn: rows of no tile, of one and of several."""
    _check(name, "bfloat16", Sizes(b=2, t=70, s=130, h=2, g=1, d=144, e=144))


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("everything", LARGE),
        ("relative", LARGE),  # of diagonals, by way of shared memory
        ("bias", Sizes(b=2, t=300, s=70, h=2, g=1, d=16, e=16)),  # of pairs, that elements of the batch share
        ("segments", Sizes(b=1, t=300, s=150, h=1, g=1, d=16, e=32)),  # several tiles of 256 queries, and of 128 keys
        ("softcap", Sizes(b=1, t=70, s=130, h=2, g=1, d=256, e=256)),  # one block has dv and another dk
    ],
    ids=["everything", "diagonals", "pairs", "several-tiles", "wide"],
)
def test_blackwell(monkeypatch, name, sizes):
    monkeypatch.setenv("JATTN_INTERPRET", "b200")
    _check(name, "bfloat16", sizes)


@pytest.mark.parametrize(
    ("name", "chip", "sizes"),
    [
        ("causal-empty-rows", "a100", None),  # of one tile, and rows that see nothing
        ("everything", "a100", LARGE),
        ("relative", "a100", LARGE),
        ("bias-every-axes", "l4", LARGE),
        ("softcap", "l4", Sizes(b=1, t=70, s=130, h=2, g=1, d=256, e=256)),  # one block has dv and another dk
    ],
    ids=["empty", "everything", "diagonals", "bias", "256"],
)
def test_ampere(monkeypatch, name, chip, sizes):
    """The kernels of Ampere and Ada, at the tile sizes of one and of the other."""
    monkeypatch.setenv("JATTN_INTERPRET", chip)
    _check(name, "bfloat16", sizes)


@pytest.mark.parametrize("chip", ["a100", "h100", "b200"])
def test_few_queries(monkeypatch, chip):
    """Heads fold into rows, and keys are seen in two parts, of which an example sees one alone."""
    monkeypatch.setenv("JATTN_INTERPRET", chip)
    random = np.random.default_rng(0)
    q, k, v = (jnp.asarray(random.standard_normal((2, *x, 16)), jnp.bfloat16) for x in ((2, 8), (1100, 2), (1100, 2)))
    options = {
        "mods": mods.alibi(jnp.linspace(0.1, 0.9, 8)),
        "mask": masks.causal() & masks.lengths(jnp.array([400, 1100])),
        "positions": jnp.array([350, 1000]),
        "return_lse": True,
    }
    wanted = jattn.attention(*(x.astype(jnp.float32) for x in (q, k, v)), implementation="reference", **options)
    out, lse = _attend(q, k, v, **options)
    assert_close(out, wanted[0], TOLERANCES["bfloat16"].value)
    assert_close(lse, wanted[1], TOLERANCES["float32"].value)
    unseen = jnp.arange(1100)[:, None, None] >= jnp.array([360, 1010])[:, None, None, None]
    again = _attend(q, *(jnp.where(unseen, jnp.nan, x) for x in (k, v)), **options)
    chex.assert_trees_all_equal(again, (out, lse))


RUNS = {
    "of lengths": lambda n: {"mask": masks.lengths(n)},
    "up to a position": lambda n: {"mask": masks.causal(), "positions": n - 3},
    "of a window": lambda n: {"mask": masks.window(300), "positions": n - 3},
    "in a tile": lambda n: {"mask": masks.window(4) & masks.lengths(n - 1), "positions": n - 3},
    "of one for all": lambda n: {"mask": masks.window(250, 2) & masks.causal(), "positions": jnp.int32(501)},
    "of none": lambda n: {"mask": masks.lengths(n) & masks.window(10), "positions": n + 20},
}


@pytest.mark.parametrize("chip", ["a100", "h100", "b200"])
@pytest.mark.parametrize(("name", "page"), [*((x, None) for x in RUNS), ("of lengths", 256), ("of a window", 16)])
def test_a_run_of_keys(monkeypatch, chip, page, name):
    """What stands beside the keys that are seen reaches nothing."""
    monkeypatch.setenv("JATTN_INTERPRET", chip)
    random, lengths = np.random.default_rng(0), jnp.array([403, 655])
    q, k, v = (jnp.asarray(random.standard_normal((2, *x, 16)), jnp.bfloat16) for x in ((3, 8), (768, 2), (768, 2)))
    options = RUNS[name](lengths) | {"return_lse": True}
    wide = [x.astype(jnp.float32) for x in (q, k, v)]
    wanted = jattn.attention(*wide, implementation="reference", **options)
    seen = jattn.weights(*wide, **{x: options[x] for x in options if x != "return_lse"}).any((1, 2))
    k, v = (jnp.where(seen[..., None, None], x, jnp.nan) for x in (k, v))
    if page:
        k, v = (x.reshape(-1, page, *x.shape[2:]) for x in (k, v))
        options["pages"] = np.arange(len(k)).reshape(2, -1)
    out, lse = _attend(q, k, v, **options)
    assert_close(out, wanted[0], TOLERANCES["bfloat16"].value)
    assert_close(lse, wanted[1], TOLERANCES["float32"].value)


@pytest.mark.parametrize(
    ("chip", "page", "copied"), [("h100", 16, False), ("h100", 256, False), ("b200", 8, False), ("a100", 64, False), ("h100", 24, True)]
)  # fmt: skip
def test_pages(monkeypatch, chip, page, copied):
    """Pages of which a tile has several or that have several tiles are read where they lie; what nobody sees of them,
    and pages in no table, reach nothing."""
    monkeypatch.setenv("JATTN_INTERPRET", chip)
    random, many = np.random.default_rng(0), -(-600 // page)
    pool = 2 * many + 3
    q, k, v = (jnp.asarray(random.standard_normal((*x, 16)), jnp.bfloat16) for x in ((2, 2, 8), *[(pool, page, 2)] * 2))
    table = random.permutation(pool)[: 2 * many].reshape(2, many)
    lengths = np.array([many * page - 5, 130])
    table[1, -1] = pool + 7  # an entry that is not in use
    options = {
        "mods": mods.alibi(jnp.linspace(0.1, 0.9, 8)),
        "mask": masks.causal() & masks.lengths(jnp.asarray(lengths)),
        "positions": jnp.asarray(lengths - 2),
        "pages": table,
        "return_lse": True,
    }
    wanted = jattn.attention(*(x.astype(jnp.float32) for x in (q, k, v)), implementation="reference", **options)
    out, lse = _attend(q, k, v, **options)
    assert_close(out, wanted[0], TOLERANCES["bfloat16"].value)
    assert_close(lse, wanted[1], TOLERANCES["float32"].value)
    del options["return_lse"]
    plan = jattn.explain(q, k, v, implementation="pallas_gpu", **options)
    assert (plan.copied is not None) == copied
    seen = np.zeros((pool, page), bool)
    for row, n in zip(table, lengths, strict=True):
        seen[row[np.arange(n) // page], np.arange(n) % page] = True
    unseen = ~seen[..., None, None]
    again = _attend(q, *(jnp.where(unseen, jnp.nan, x) for x in (k, v)), **options)
    chex.assert_trees_all_equal(again, out)


def test_float16():
    _check("alibi", "float16", LARGE)


def _attend(q, k, v, **options):
    return jattn.attention(q, k, v, implementation="pallas_gpu", **options)


def _arrays(t=20, s=140, dtype=jnp.bfloat16):
    random = np.random.default_rng(0)
    return [jnp.asarray(random.standard_normal((2, n, 2, 16)), dtype) for n in (t, s, s)]


_LENGTHS = np.array([100, 140])
HIDING = {
    "lengths": lambda lengths: masks.lengths(lengths),
    "lengths and causal": lambda lengths: masks.causal(130) & masks.lengths(lengths),
    "of queries too": lambda lengths: masks.lengths(lengths, 15),
    "pairs": lambda lengths: masks.function(lambda i, j, n: j < n, jattn.operand(lengths, "b")),
    "one for all": lambda lengths: masks.lengths(100) & masks.lengths(lengths),
}


@pytest.mark.parametrize("name", HIDING)
def test_a_nan_that_nobody_sees_reaches_nothing(name):
    q, k, v = _arrays()
    lengths = jnp.asarray(_LENGTHS)
    options = {"mask": HIDING[name](lengths), "mods": mods.softcap(20.0)}
    loss = lambda q, k, v: jnp.sum(_attend(q, k, v, **options).astype(jnp.float32) ** 2)
    wanted = jax.grad(loss, (0, 1, 2))(q, k, v)
    past = (jnp.arange(140) >= lengths[:, None])[..., None, None]
    hidden = [jnp.where(past, jnp.nan, x) for x in (k, v)]
    got = jax.grad(loss, (0, 1, 2))(q, *hidden)
    chex.assert_trees_all_equal(got, wanted)
    assert not any(jnp.isnan(x).any() for x in got)


def test_lengths_of_elements_that_share_keys():
    """What one of them sees is there for it, and what none sees reaches nothing."""
    q, k, v = _arrays()
    k, v, lengths = k[:1], v[:1], jnp.array([100, 120])
    hidden = [jnp.where((jnp.arange(140) >= 120)[:, None, None], jnp.nan, x) for x in (k, v)]
    attend = lambda arrays, **options: jax.vmap(
        lambda q, n: jattn.attention(q[None], *arrays, mask=masks.lengths(n[None]), **options)
    )
    wide = [x.astype(jnp.float32) for x in (k, v)]
    wanted = attend(wide, implementation="reference")(q.astype(jnp.float32), lengths)
    assert_close(attend(hidden, implementation="pallas_gpu")(q, lengths), wanted, TOLERANCES["bfloat16"].value)


def test_a_nan_that_is_seen_is_nan():
    q, k, v = _arrays()
    out, lse = _attend(q, k.at[1, 3, 0, 0].set(jnp.nan), v, return_lse=True)
    assert jnp.isnan(out[1, :, 0]).all() and jnp.isnan(lse[1, :, 0]).all()
    assert jnp.isfinite(out[0]).all() and jnp.isfinite(lse[1, :, 1]).all()


def test_rows_of_the_lowest_number_are_means():
    q, k, v = _arrays()
    out = _attend(q, k, v, bias=jnp.full((1, 1, 1, 1), float(jnp.finfo(jnp.float32).min)))
    assert_close(out, jnp.broadcast_to(v.astype(jnp.float32).mean(1, keepdims=True), out.shape), 2.0**-8)


@pytest.mark.parametrize("gated", [False, True])
def test_gradients_of_rows_whose_lse_has_no_place_for_the_log_of_a_sum(gated):
    q, k, v = _arrays()
    options = {"bias": jnp.full((1, 1, 1, 1), 1e30), **({"dropout": gates.dropout(0.5, 3)} if gated else {})}

    def loss(implementation, v):
        out = jattn.attention(q.astype(v.dtype), k.astype(v.dtype), v, implementation=implementation, **options)
        return jnp.sum(jnp.sin(out.astype(jnp.float32)))

    wanted = jax.grad(loss, 1)("reference", v.astype(jnp.float32))
    assert_close(jax.grad(loss, 1)("pallas_gpu", v), wanted, TOLERANCES["bfloat16"].gradient)


@pytest.mark.parametrize("chip", ["h100", "b200", "a100"])
@pytest.mark.parametrize(
    ("cap", "dtype"), [(60.0, jnp.bfloat16), (61.0, jnp.bfloat16), (60.0, jnp.float16)], ids=["60", "61", "float16"]
)
def test_scores_that_a_cap_bounds(monkeypatch, chip, cap, dtype):
    """All of a row may lie at one end of what needs no maximum, where exponentials are least or greatest."""
    monkeypatch.setenv("JATTN_INTERPRET", chip)
    q, k, v = _arrays(dtype=dtype)
    q, k = (jnp.abs(x) * 40 for x in (q, k))
    q = q.at[:, ::2].multiply(-1)
    options = {"mods": mods.softcap(cap), "mask": masks.causal(100), "return_lse": True}
    wide = [x.astype(jnp.float32) for x in (q, k, v)]
    got, wanted = _attend(q, k, v, **options), jattn.attention(*wide, implementation="reference", **options)
    assert_close(got[0], wanted[0], TOLERANCES[jnp.dtype(dtype).name].value)
    assert_close(got[1], wanted[1], TOLERANCES["float16"].value)


def test_tiles_as_asked_for():
    q, k, v = _arrays()
    chex.assert_trees_all_close(_attend(q, k, v, blocks=(128, 64)), _attend(q, k, v), atol=2.0**-8)
    with pytest.raises(ValueError, match=r"^blocks must be \(128 query rows, .* got \(64, 64\)"):
        _attend(q, k, v, blocks=(64, 64))


def test_tiles_that_tensor_memory_does_not_hold(monkeypatch):
    monkeypatch.setenv("JATTN_INTERPRET", "b200")
    x = jnp.ones((1, 8, 1, 256), jnp.bfloat16)
    with pytest.raises(ValueError, match="tensor memory has 512 columns, and these tiles take 576: ask for fewer"):
        _attend(x, x, x, blocks=(256, 32))


def test_terms_that_look_up_tables():
    q, k, v = _arrays()
    table, layout = jnp.linspace(-1.0, 1.0, 7), jnp.arange(16).reshape(4, 4) % 3 > 0
    options = {
        "mods": mods.function(lambda score, i, j: score + table[(i + j) % 7]),
        "mask": masks.function(lambda i, j: layout[i // 8, j // 40]),
    }
    wanted = jattn.attention(*(x.astype(jnp.float32) for x in (q, k, v)), implementation="reference", **options)
    assert_close(_attend(q, k, v, **options), wanted, TOLERANCES["bfloat16"].value)


def test_the_same_bits_each_time_and_those_of_dropout():
    q, k, v = _arrays()
    options = {"dropout": gates.dropout(0.3, 7), "mask": masks.causal(offset=100)}
    one, other = (_attend(q, k, v, **options) for _ in range(2))
    chex.assert_trees_all_equal(one, other)
    wanted = jattn.attention(*(x.astype(jnp.float32) for x in (q, k, v)), implementation="reference", **options)
    assert_close(one, wanted, TOLERANCES["bfloat16"].value)


@pytest.mark.parametrize(("name", "width"), [("causal", 32), ("everything", 32), ("causal", 144)])
def test_no_races(name, width):
    """With no more tiles than stand in memory at once: where a place is used again the simulator of jax 0.12.0 reports a
    race of the plainest loop of one who copies and one who reads."""
    from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call
    from jax.experimental.pallas import mosaic_gpu as plgpu

    sizes = dataclasses.replace(LARGE, t=100, s=120, d=width, e=max(width, 64) // 4)
    q, k, v, operands, signature = reduce(problem(*make(name, jnp.bfloat16, sizes)))
    target = targets.Target("cpu", None, plgpu.InterpretGPUParams(detect_races=True))
    spec = Spec(PALLAS_GPU, signature, q.dtype, None, None, target)
    result = PALLAS_GPU.forward(spec, q, k, v, operands)
    active = [jnp.issubdtype(x.dtype, jnp.floating) for x in operands]
    PALLAS_GPU.backward(spec, q, k, v, operands, result, result.out, jnp.zeros_like(result.lse), active)
    assert not interpret_pallas_call.get_races().races_found


def test_no_races_on_blackwell():
    """Of one warpgroup: tiles of two stand in one array beside each other, which the simulator takes for one place."""
    from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call
    from jax.experimental.pallas import mosaic_gpu as plgpu

    sizes = Sizes(b=1, t=100, s=120, h=1, g=1, d=144, e=144)
    q, k, v, operands, signature = reduce(problem(*make("causal", jnp.bfloat16, sizes)))
    target = targets.Target("cpu", "b200", plgpu.InterpretGPUParams(detect_races=True), (10, 0))
    spec = Spec(PALLAS_GPU, signature, q.dtype, None, None, target)
    PALLAS_GPU.forward(spec, q, k, v, operands)
    assert not interpret_pallas_call.get_races().races_found


@pytest.mark.parametrize("size", [2.0**10, 2.0**13])
def test_equal_products_of_any_size_share_the_weight(size):
    """A float32 of such a score has no place for the log of how many there are.

    Powers of two: a GPU takes the maximum from an unrounded multiple of a score, the simulator only sometimes.
    """
    *_, v = _arrays()
    q, k = (jnp.full_like(x, size) for x in _arrays()[:2])
    loss = lambda attend: lambda v: jnp.sum(attend(q, k, v, mask=masks.causal(100)).astype(jnp.float32) ** 2)
    reference = lambda *args, **options: jattn.attention(*args, implementation="reference", **options)
    assert_close(jax.grad(loss(_attend))(v), jax.grad(loss(reference))(v.astype(jnp.float32)), 2e-2)
