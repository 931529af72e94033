"""The TPU kernels: interpreted, against the reference in float64; and their lists of work."""

from __future__ import annotations

import contextlib
import functools
from unittest import mock

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jattn_kernels.tpu.operands import Frame
from jattn_kernels.tpu.work import Sizes as TileSizes

import jattn
from jattn import _blocks, _checks, _dispatch, _target, masks, mods, normalizers, scores
from jattn._problem import Spec, reduce
from jattn.backends import _tpu_work, tpu
from tests import aot
from tests.cases import CASES, Sizes, make
from tests.evaluate import check_dtype, evaluate, widen
from tests.tolerances import assert_close

SMOKE = {"causal", "everything"}
LARGE = Sizes(t=150, s=270, d=8, e=16)
SMALL_TILES = TileSizes(128, 128, 128, 256)
TURNED_TILES = TileSizes(256, 128, 128, 256, rows=128, wide=True, newton=True, turned_dq=True, turned_dkv=True)


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setenv("JATTN_INTERPRET", "1")


def _refusal(inputs):
    arrays, options = inputs
    options = {"score": scores.dot(), "normalizer": normalizers.softmax(), **options}
    problem = _checks.problem(*arrays, mods_=options.pop("mods", ()), **options)
    return _dispatch.BACKENDS["pallas_tpu"].refuses(problem, _target.current())


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


@pytest.fixture(params=["upright", "turned", "runs"])
def small_tiles(monkeypatch, request):
    """Several query tiles, key tiles and chunks of keys at sizes that the interpreter can do."""
    sizes = TURNED_TILES if request.param == "turned" else SMALL_TILES
    monkeypatch.setattr(tpu, "tile_sizes", lambda *_, **__: (sizes, "small"))
    if request.param == "runs":  # as where lists of tiles do not fit in scalar memory
        monkeypatch.setattr(_tpu_work, "_as_lists", lambda *_, **__: None)
    caches = jattn.api._run.clear_cache, _tpu_work.static_work.cache_clear
    for clear in caches:
        clear()
    yield
    for clear in caches:
        clear()


SEVERAL = ["causal", "segments", "nested", "relative", "bias-every-axes", "everything", "blocks-heads"]


@pytest.mark.usefixtures("interpreted", "small_tiles")
@pytest.mark.parametrize("name", SEVERAL)
def test_several_tiles_and_chunks(name):
    """Against blockwise in float64: rows, keys and chunks hang over the ends of the arrays."""
    inputs = make(name, "float32", LARGE)
    got = evaluate(inputs, "pallas_tpu", forward_mode=False)
    with jax.enable_x64(True):
        wanted = evaluate(make(name, "float64", LARGE), "blockwise", forward_mode=False)
    assert_close(got.out, wanted.out, 1e-5, "out")
    assert_close(got.lse, wanted.lse, 1e-5, "lse")
    for which, x, y in zip(got.names, got.gradients, wanted.gradients, strict=True):
        assert_close(x, y, 1e-5 * max(1.0, float(np.abs(y).max(initial=0))), f"gradient of {which}")


@pytest.mark.parametrize("name", ["causal", "everything", "bias"])
def test_memory_is_written_before_it_is_read(name, monkeypatch):
    """The simulator starts every memory with NaN and looks for races between copies and kernels."""
    from jax.experimental.pallas import tpu as pltpu

    monkeypatch.setattr(tpu, "tile_sizes", lambda *_, **__: (SMALL_TILES, "small"))
    arrays, options = make(name, "float32", LARGE)
    options = {"score": scores.dot(), "normalizer": normalizers.softmax(), **options}
    problem = _checks.problem(*arrays, mods_=options.pop("mods", ()), **options)
    q, k, v, operands, signature = reduce(problem)
    simulated = pltpu.InterpretParams(uninitialized_memory="nan", detect_races=True)

    def run(interpret):
        spec = Spec("pallas_tpu", signature, q.dtype, None, None, _target.Target("cpu", None, interpret))
        result = tpu.forward(spec, q, k, v, operands)
        learn = [jnp.issubdtype(x.dtype, jnp.floating) for x in operands]
        dlse = jnp.where(jnp.isfinite(result.lse), jnp.cos(result.lse), 0)
        return tpu.backward(spec, q, k, v, operands, result, jnp.sin(result.out), dlse, learn), result

    got, wanted = (jax.jit(functools.partial(run, x))() for x in (simulated, True))
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        if jnp.issubdtype(y.dtype, jnp.floating):
            # the two add up in different orders: an array is as exact as its largest number, sums that cancel are not
            largest = max(1.0, float(jnp.max(jnp.where(jnp.isfinite(y), jnp.abs(y), 0), initial=0)))
            assert_close(x / largest, y / largest, 4e-6)
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call

    assert not interpret_pallas_call.races.races_found


@pytest.mark.usefixtures("interpreted")
def test_every_derivative():
    """Higher orders and forward mode go through the twins."""
    (q, k, v), options = make("causal", "float32")

    def loss(implementation, q):
        out, lse = jattn.attention(q, k, v, implementation=implementation, return_lse=True, **options)
        return jnp.sum(jnp.sin(out)) + jnp.sum(jnp.where(jnp.isfinite(lse), lse, 0) ** 2)

    for of in (
        lambda f: jax.jvp(f, (q,), (q,))[1],
        lambda f: jax.jvp(jax.grad(f), (q,), (k[:, : q.shape[1], [0, 0, 1, 1]],))[1],
        lambda f: jax.vmap(jax.grad(f))(jnp.stack([q, 2 * q])),
    ):
        got, wanted = (
            jax.jit(functools.partial(of, functools.partial(loss, n)))() for n in ("pallas_tpu", "reference")
        )
        assert_close(got, wanted, 1e-4)


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


EYE = np.eye(8, dtype=bool)


def test_elsewhere_it_refuses(monkeypatch):
    monkeypatch.delenv("JATTN_INTERPRET", raising=False)
    x = jnp.ones((1, 8, 2, 4))
    with pytest.raises(jattn.UnsupportedError, match="JATTN_INTERPRET=1"):
        jattn.attention(x, x, x, implementation="pallas_tpu")
    assert jattn.explain(x, x, x).backend == "blockwise"


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"mask": masks.function(lambda i, j: jnp.asarray(EYE)[i, j])}, "jattn.operand"),
        ({"mods": mods.function(lambda s, i, j, x: s + x[..., 0], jattn.operand(jnp.ones((2, 3)), "h"))}, r"\[2, 3\]"),
        ({"mods": mods.function(lambda s, i, j: jax.lax.fori_loop(0, 3, lambda _, x: x / 2, s))}, "elementwise"),
    ],
)
def test_what_a_kernel_cannot_evaluate(options, reason):
    x = jnp.ones((1, 8, 2, 4))
    with pytest.raises(jattn.UnsupportedError, match=reason):
        jattn.attention(x, x, x, implementation="pallas_tpu", **options)


def test_float16_is_refused(interpreted):
    x = jnp.ones((1, 8, 2, 4), jnp.float16)
    with pytest.raises(jattn.UnsupportedError, match="float16"):
        jattn.attention(x, x, x, implementation="pallas_tpu")


# The compiler, for chips that are not here


def _assert_compiles(chip, names):
    for found in aot.compile_all(chip, names):
        assert found.get("kernels") == 2, f"{chip} {found}"


needs_libtpu = pytest.mark.skipif(not aot.INSTALLED, reason="libtpu is not installed: pip install 'jattn[aot]'")


@needs_libtpu
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


@needs_libtpu
@pytest.mark.aot
@pytest.mark.parametrize("chip", aot.TOPOLOGIES)
def test_it_compiles_at_every_size(chip):
    _assert_compiles(chip, list(aot.CASES))


@needs_libtpu
@pytest.mark.aot
def test_it_compiles_with_lists_that_no_memory_holds_and_with_layouts():
    _assert_compiles("v5e", [*aot.LONG, *aot.LAYOUTS])


def _lowered(mask, *, b=1, t=4096, h=8, g=8):
    """The program of all gradients for v5e, as text."""
    q, k = (jax.ShapeDtypeStruct((b, t, n, 128), jnp.bfloat16) for n in (h, g))
    loss = lambda q, k, v: jattn.attention(q, k, v, mask=mask).astype(jnp.float32).sum()
    with mock.patch.object(_target, "current", return_value=_target.Target("tpu", "v5e")):
        jattn.api._run.clear_cache()
        lowered = jax.jit(jax.grad(loss, (0, 1, 2))).trace(q, k, k).lower(lowering_platforms=("tpu",))
    text = lowered.as_text()
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


# Lists of work


@st.composite
def static_masks(draw):
    one = st.one_of(
        st.builds(masks.causal, st.integers(-300, 300)),
        st.builds(masks.window, st.integers(0, 400), st.integers(0, 400)),
        st.builds(masks.prefix, st.integers(0, 700)),
        st.builds(masks.dilated, st.integers(1, 3)),
    )
    left, right = draw(one), draw(one)
    return draw(st.sampled_from([left, left & right, left | right, ~left]))


def visited(work, frame, upright, i):
    """What query tile i visits: chunk, key tile, and the steps of the tile."""
    for c in range(work.shape.steps if upright else frame.chunks):
        scalars = [x[c] for x in work.scalars] if work.by_chunk else work.scalars
        chunk = work.shape.chunk(scalars, 0, 0, i, c) if upright else c
        visits = work.shape.visits(scalars, 0, 0, i, c, None if upright else c)
        for n in range(int(visits.full)):
            yield int(chunk), int(visits.tile(n, False)[0]), frame.sizes.whole(False, upright)
        for n in range(int(visits.partial)):
            tile, pattern = (int(x) for x in visits.tile(n, True))
            yield int(chunk), tile, work.patterns[pattern]


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
    static_masks(), st.integers(1, 700), st.integers(1, 700), st.sampled_from([128, 256, 512]),
    st.sampled_from([128, 256, 512]), st.integers(1, 3), st.booleans(), st.booleans(),
)  # fmt: skip
def test_the_steps_of_all_tiles_are_the_mask(mask, t, s, query, key, per_chunk, upright, room):
    """Every pair that attends is in one step; what a step calls unmasked attends.  So where lists have no `room`."""
    sizes = TileSizes(query, key, 128, key * per_chunk)
    frame = Frame(t, s, sizes)
    with contextlib.nullcontext() if room else mock.patch.object(_tpu_work, "_as_lists", return_value=None):
        work = _tpu_work.static_work.__wrapped__(mask, frame, upright)
    padded = frame.query_tiles * query, frame.key_tiles * key
    count, unmasked = np.zeros(padded, int), np.zeros(padded, bool)

    def lay(i, j, steps):
        for step in steps:
            for piece in step.pieces:
                row, column = (step, piece) if upright else (piece, step)
                at = slice(i + row.at, i + row.at + row.size), slice(j + column.at, j + column.at + column.size)
                count[at] += 1
                unmasked[at] |= not piece.masked

    for i in range(frame.query_tiles):
        for chunk, tile, steps in visited(work, frame, upright, i):
            assert tile // per_chunk == chunk
            lay(i * query, tile * key, steps)
    attends = np.asarray(mask(np.arange(t)[:, None], np.arange(s)[None]))
    assert count.max(initial=0) <= 1
    assert (count[:t, :s][attends] == 1).all()
    assert attends[unmasked[:t, :s]].all()
    assert not unmasked[:, s:].any()


def test_a_diagonal_tile_does_about_half_its_products():
    sizes = TileSizes(1024, 1024, 512, 4096)
    work = _tpu_work.static_work(masks.causal(), Frame(4096, 4096, sizes), True)
    assert len(work.patterns) == 1
    pairs = sum(step.size * piece.size for step in work.patterns[0] for piece in step.pieces)
    assert pairs <= 0.63 * 1024**2


def test_the_grid_is_only_as_long_as_the_work():
    """Chunks of keys that no query tile of a window sees at once are no steps of the grid."""
    frame = Frame(4096, 4096, TileSizes(256, 256, 256, 512))
    work = _tpu_work.static_work(masks.causal() & masks.window(left=300), frame, True)
    assert frame.chunks == 8
    assert work.shape.steps == 2


def test_segments_known_at_run_time_skip_tiles():
    ids = jnp.repeat(jnp.arange(4), 256)[None]
    frame = Frame(1024, 1024, TileSizes(256, 256, 256, 1024))
    q_ids = jattn.operand(ids, "bt")
    mask = masks.Segments(q_ids, jattn.operand(ids, "bs"))
    tiles, counts, _ = jax.jit(lambda: _tpu_work.work_of(mask, frame, True).scalars)()
    assert counts.reshape(-1, 3).tolist() == [[0, 1, 0]] * 4
    assert tiles.reshape(4, 4)[:, 0].tolist() == [0, 1, 2, 3]
    with mock.patch.object(_tpu_work, "_as_lists", return_value=None):
        (ends,) = jax.jit(lambda: _tpu_work.work_of(mask, frame, True).scalars)()
    assert ends.reshape(-1, 5).tolist() == [[n, n, n + 1, n + 1, 0] for n in range(4)]


def test_answers_of_tiles_that_hang_over():
    tiling = _blocks.Tiling(300, 128, overhang=True)
    assert tiling.range().lo.tolist() == [0, 128, 256]
    assert tiling.range().hi.tolist() == [127, 255, 299]


# Plans


@pytest.mark.parametrize("device", ["v4", "v5e", "v5p", "v6e", "tpu7x"])
def test_explain_for_a_chip_that_is_not_here(device):
    x = jax.ShapeDtypeStruct((1, 8192, 8, 128), "bfloat16")
    plan = jattn.explain(x, x, x, mask=masks.causal(), device=device)
    assert plan.backend == "pallas_tpu"
    assert plan.milliseconds > 0
    assert device in plan.tuned
    empty, partial, full = plan.blocks
    assert empty == full > partial > 0
    assert "estimate" in str(plan)


def test_explain_says_when_its_table_has_no_such_case():
    x = jax.ShapeDtypeStruct((1, 1000, 8, 80), "bfloat16")
    assert "nearest" in jattn.explain(x, x, x, device="v5e").tuned
    with pytest.raises(ValueError, match="v5e"):
        jattn.explain(x, x, x, device="v9")


@pytest.mark.parametrize("name", aot.LONG)
def test_explain_plans_long_sequences(name):
    t = aot.LONG[name]
    x, ids = jax.ShapeDtypeStruct((1, t, 1, 128), "bfloat16"), jnp.arange(t, dtype=jnp.int32)[None] // 9000
    mask = {
        "window": masks.window(1023),
        "full": None,
        "causal": masks.causal(),
        "causal-segments": masks.causal() & masks.segments(ids),
        "window-segments": masks.window(1023) & masks.segments(ids),
    }[name]
    plan = jattn.explain(x, x, x, mask=mask, device="v5e")
    assert plan.backend == "pallas_tpu"
    assert plan.milliseconds > 0


def test_beyond_scalar_memory_it_refuses():
    x = jax.ShapeDtypeStruct((1, 2**25, 1, 128), "bfloat16")
    with pytest.raises(jattn.UnsupportedError, match="16777216"):
        jattn.explain(x, x, x, device="v5e", implementation="pallas_tpu")


def test_beyond_fast_memory_it_refuses():
    x = jax.ShapeDtypeStruct((1, 2**19, 1, 128), "bfloat16")
    strip = mods.relative(jnp.ones((1, 32)))
    assert jattn.explain(x, x, x, mods=strip, device="v5e").backend == "pallas_tpu"
    with pytest.raises(jattn.UnsupportedError, match="relative positions"):
        jattn.explain(x, x, x, mods=strip, device="v4", implementation="pallas_tpu")


def test_time_is_at_least_bytes_over_bandwidth():
    """A decoding step: one query, and a cache that takes a third of a millisecond to read."""
    q, k = (jax.ShapeDtypeStruct(x, "bfloat16") for x in ((8, 1, 32, 128), (8, 8192, 8, 128)))
    plan = jattn.explain(q, k, k, device="v5e")
    assert plan.milliseconds >= 1e3 * plan.bytes / 819e9 > 0.32
    assert plan.flops == 2 * 8 * 32 * 8192 * (128 + 128)  # rows that fill a tile up are none


def test_a_window_as_wide_as_the_sequence_is_none():
    x = jax.ShapeDtypeStruct((1, 8192, 8, 128), "bfloat16")
    wide = masks.window(left=8191)
    plans = [jattn.explain(x, x, x, mask=m, device="v5e") for m in (masks.causal(), masks.causal() & wide, wide)]
    assert len({plan.milliseconds for plan in plans}) == 1
    assert len({plan.tuned for plan in plans}) == 1
    full = [jattn.explain(x, x, x, mask=m, device="v5e") for m in (None, masks.window(8191, 8191))]
    assert full[0].milliseconds == full[1].milliseconds


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="multiples of 128"):
        TileSizes(100, 128, 128, 128)
    with pytest.raises(ValueError, match="step must divide key"):
        TileSizes(128, 384, 256, 384)
