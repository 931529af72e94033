"""Few queries on TPU: heads that fold, interpreted, against the reference; and which chunks of keys they visit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jattn_kernels.tiles.work import EMPTY
from jattn_kernels.tpu.decode import items

import jattn
from jattn import gates, masks, mods, operand
from jattn.backends.pallas_tpu.decode import MOST_ROWS
from tests.tolerances import assert_close

B, S = 3, 131  # keys: a prime, so that chunks hang over
LENGTHS = jnp.array([0, 1, S])


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    monkeypatch.setenv("JATTN_INTERPRET", "1")


def _numbers(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape), jnp.float32)


def _inputs(t, h, g, d=8, e=5):
    return _numbers(B, t, h, d), _numbers(B, S, g, d), _numbers(B, S, g, e)


def _attend(arrays, implementation, options, chunk=None):
    blocks = None if chunk is None else (16, chunk)
    run = lambda *x: jattn.attention(*x, return_lse=True, implementation=implementation, blocks=blocks, **options)
    return jax.jit(run)(*arrays)


def _compare(arrays, options, chunk):
    got, wanted = _attend(arrays, "pallas_tpu", options, chunk), _attend(arrays, "reference", options)
    for what, x, y in zip(("out", "lse"), got, wanted, strict=True):
        assert_close(x, y, 1e-5, what)


MASKS = {
    "alone": {},
    "cache": {"mask": masks.causal() & masks.prefix(LENGTHS), "positions": LENGTHS - 1},
    "window": {"mask": masks.window(7) & masks.prefix(LENGTHS + 5), "positions": LENGTHS},
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize(("t", "h", "g", "chunk"), [(1, 4, 1, 128), (3, 8, 8, 16), (3, 6, 3, 128), (1, 32, 8, 32)])
def test_heads_fold(name, t, h, g, chunk):
    """Of every example its own length, none at all included; groups of one head and of several, and no power of two."""
    _compare(_inputs(t, h, g), MASKS[name], chunk)


ROOM, HAVE = 256, jnp.array([0, 40, 256])


@pytest.mark.parametrize("stored", ["float32", "int8"])
@pytest.mark.parametrize(("t", "h", "g", "chunk"), [(1, 4, 1, 128), (2, 8, 8, 32), (5, 6, 3, 128), (3, 8, 2, 256)])
def test_whole_chunks_are_copied_ahead(stored, t, h, g, chunk):
    """Of fewer chunks than are in fast memory at once, and of more; what nobody sees is NaN, or has scales that are."""
    q, k, v = _numbers(B, t, h, 8), _numbers(B, ROOM, g, 8), _numbers(B, ROOM, g, 5)
    options = {"mask": masks.causal() & masks.prefix(HAVE), "positions": HAVE - t}
    spoil = lambda x: jnp.where((jnp.arange(ROOM) < HAVE[:, None]).reshape(B, ROOM, *[1] * (x.ndim - 2)), x, jnp.nan)
    if stored == "int8":
        k, v = (jnp.round(30 * x).astype(jnp.int8) for x in (k, v))
        scales = tuple(jnp.abs(_numbers(B, ROOM, g)) / n for n in (30, 40))
        given, whole = (q, k, v), {**options, "scales": tuple(map(spoil, scales))}
        options["scales"] = scales
    else:
        given, whole = (q, spoil(k), spoil(v)), options
    got, wanted = _attend(given, "pallas_tpu", whole, chunk), _attend((q, k, v), "reference", options)
    for x, y in zip(got, wanted, strict=True):
        assert_close(x, y, 1e-5)


def test_keys_that_many_queries_share_are_copied_for_each():
    q, k, v = _numbers(2, B, 1, 8, 8), _numbers(B, ROOM, 2, 8), _numbers(B, ROOM, 2, 5)
    options = {"mask": masks.causal() & masks.prefix(HAVE), "positions": HAVE - 1}
    over = lambda x: jax.vmap(lambda q: _attend((q, k, v), x, options, 128)[0])(q)
    assert_close(over("pallas_tpu"), over("reference"), 1e-5)


T, H, G = 3, 8, 4
TERMS = {
    "numbers": lambda: {"mods": (mods.softcap(jnp.float32(2.0)), mods.bias(_numbers(B), "b"))},
    "rows": lambda: {"mods": (mods.alibi(0.1 * _numbers(H)), mods.bias(_numbers(B, H, T), "bht"), mods.bias(_numbers(T), "t"))},
    "columns": lambda: {"mods": mods.bias(_numbers(B, S), "bs"), "gates": gates.gaussian(_numbers(B, T) * 40, 9.0)},
    "pairs": lambda: {
        "mods": (mods.bias(_numbers(H, S), "hs"), mods.bias(_numbers(B, T, S), "bts")),
        "bias": _numbers(1, H, T, S),
        "gates": gates.function(lambda w, i, j, a: w * jnp.cos(a + i - j), operand(_numbers(B, H, S), "bhs")),
    },
    "relative": lambda: {"mods": mods.relative(_numbers(H, 16)), "positions": LENGTHS, "mask": masks.causal()},
    "blocks": lambda: {
        "mask": masks.blocks(np.random.default_rng(0).random((H, 28, 28)) < 0.4, 5), "positions": jnp.array([0, 7, 99]),
    },
    "tree": lambda: {"mask": masks.dense(jnp.asarray(np.random.default_rng(1).random((B, 1, T, S)) < 0.5))},
    "segments": lambda: {"mask": masks.segments(jnp.arange(B * T).reshape(B, T) % 5, jnp.arange(B * S).reshape(B, S) % 5)},
    "not-everywhere": lambda: {
        "mods": mods.function(lambda s, i, j: s * jnp.log((i - j + 2).astype(s.dtype))),
        "gates": gates.function(lambda w, i, j: w * jnp.sqrt((i - j).astype(w.dtype))),
        "mask": masks.causal(), "positions": LENGTHS - T,
    },
    "dropout": lambda: {"dropout": gates.dropout(0.3, 7), "sinks": _numbers(H), "positions": LENGTHS},
}  # fmt: skip


@pytest.mark.parametrize("name", TERMS)
def test_every_kind_of_term(name):
    """Operands along rows, along columns and along both; with one mask of few keys, whose chunks are not all visited."""
    options = TERMS[name]()
    _compare(_inputs(T, H, G), options, 32)


PAGE, PAGES, POOL = 8, 17, 60
TABLE = jnp.asarray(np.random.default_rng(2).permutation(POOL)[: B * PAGES].reshape(B, PAGES), jnp.int32)
CACHE = {"mask": masks.causal() & masks.prefix(LENGTHS), "positions": LENGTHS - T, "pages": TABLE}


@pytest.mark.parametrize("bits", [8, 32])
def test_pages_are_read_where_they_lie(bits):
    """What stands in pages that nobody sees is NaN, and the table has no such pages."""
    pool = (_numbers(POOL, PAGE, G, 8), _numbers(POOL, PAGE, G, 5))
    options = dict(CACHE)
    if bits == 8:
        pool = tuple(jnp.round(20 * x).astype(jnp.int8) for x in pool)
        options["scales"] = tuple(0.05 + jnp.abs(_numbers(POOL, PAGE, G)) / n for n in (50, 60))
    q, own = _numbers(B, T, H, 8), TABLE
    got = _attend((q, *pool), "pallas_tpu", {**options, "pages": jnp.where(own == own[0, 3], 10**6, own)}, 32)
    wanted = _attend((q, *pool), "reference", options)
    for x, y in zip(got, wanted, strict=True):
        assert_close(x, y, 1e-5)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (q, *pool))
    copied = jattn.explain(*shapes, device="v5e", **options).copied
    assert (copied is None) == (PAGE * G * bits // 8 % 32 == 0)


NARROW = {
    "cache": lambda h: MASKS["cache"],
    "window": lambda h: MASKS["window"],
    "terms": lambda h: {
        "mods": (mods.softcap(jnp.float32(5.0)), mods.bias(_numbers(B, h, S), "bhs"), mods.alibi(0.1 * _numbers(h))),
        "gates": gates.function(lambda w, i, j, a: w * a, operand(_numbers(B, h, S), "bhs")),
        "sinks": _numbers(h),
        **MASKS["cache"],
    },
}


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize(
    ("stored", "t", "h", "g", "d", "e"),
    [
        ("int8", 1, 4, 4, 8, 5),
        ("int8", 2, 12, 3, 8, 136),
        ("float8_e4m3fn", 1, 14, 2, 136, 8),
        ("float8_e5m2", 1, 16, 4, 8, 8),
    ],
)
def test_numbers_of_8_bits(name, stored, t, h, g, d, e):
    """Groups of 1, 4 and 7 heads, widths of less and more than a register's lanes."""
    q, k, v = _numbers(B, t, h, d), _numbers(B, S, g, d), _numbers(B, S, g, e)
    narrow = lambda x: jnp.round(30 * x).astype(jnp.int8) if stored == "int8" else x.astype(stored)
    scales = tuple((0.5 + jnp.abs(_numbers(B, S, g))) / n for n in ((40, 50) if stored == "int8" else (1, 2)))
    _compare((q, narrow(k), narrow(v)), {"scales": scales, **NARROW[name](h)}, 128)


@pytest.mark.parametrize(("h", "g"), [(4, 4), (16, 4), (14, 2)])
def test_int8_is_as_exact_as_weights_are(h, g):
    """With queries in bfloat16 nothing is rounded but the weights, each by half a unit of their last bit, and the output."""
    q = 3 * _numbers(B, 1, h, 64).astype(jnp.bfloat16)
    k, v = (jnp.clip(jnp.round(40 * _numbers(B, S, g, n)), -127, 127).astype(jnp.int8) for n in (64, 65))
    scales = tuple(jnp.exp(_numbers(B, S, g) + n) / 60 for n in range(2))
    options = {**MASKS["cache"], "scales": scales}
    got = _attend((q, k, v), "pallas_tpu", options, 128)[0]
    wanted = _attend((q.astype(jnp.float32), k, v), "reference", options)[0]
    sizes = _attend((q.astype(jnp.float32), k, jnp.abs(v)), "reference", options)[0]
    assert (abs(got - wanted) <= 2.0**-8 * (sizes + abs(wanted)) + 1e-5).all()


def test_scales_that_no_query_sees_reach_nothing():
    """And one that is seen reaches the heads of its group alone."""
    h, g = 8, 4
    q, k, v = _numbers(B, 1, h, 8), *(jnp.round(30 * _numbers(B, S, g, n)).astype(jnp.int8) for n in (8, 5))
    scales = tuple(jnp.abs(_numbers(B, S, g)) / n for n in (30, 40))
    unseen = jnp.arange(S)[None, :, None] >= LENGTHS[:, None, None]
    got = _attend(
        (q, k, v), "pallas_tpu", {**MASKS["cache"], "scales": tuple(jnp.where(unseen, jnp.nan, x) for x in scales)}
    )
    for x, y in zip(got, _attend((q, k, v), "reference", {**MASKS["cache"], "scales": scales}), strict=True):
        assert_close(x, y, 1e-5)
    out, lse = _attend(
        (q, k, v), "pallas_tpu", {**MASKS["cache"], "scales": (scales[0].at[2, 5, 1].set(jnp.nan), scales[1])}
    )
    bad = np.isnan(out).any(-1)
    assert (bad == np.isnan(lse)).all()
    assert np.argwhere(bad).tolist() == [[2, 0, 2], [2, 0, 3]]


def test_gradients_and_vmap_of_pages_gather():
    q, pool = _numbers(B, T, H, 8), (_numbers(POOL, PAGE, G, 8), _numbers(POOL, PAGE, G, 5))
    loss = lambda x: lambda *a: jnp.sum(jnp.sin(_attend(a, x, CACHE, 32)[0]))
    for x, y in zip(*(jax.grad(loss(x), (0, 1, 2))(q, *pool) for x in ("pallas_tpu", "reference")), strict=True):
        assert_close(x, y, 1e-5)
    many = jnp.stack([q, -q])
    over = lambda x: jax.vmap(lambda q: _attend((q, *pool), x, CACHE, 32)[0])(many)
    assert_close(over("pallas_tpu"), over("reference"), 1e-5)


def test_gradients_are_those_of_all_calls():
    arrays = _inputs(T, H, G)

    def gradients(implementation):
        loss = lambda *x: jnp.sum(jnp.sin(_attend(x, implementation, MASKS["cache"])[0]))
        return jax.grad(loss, (0, 1, 2))(*arrays)

    for x, y in zip(gradients("pallas_tpu"), gradients("reference"), strict=True):
        assert_close(x, y, 1e-5)


def test_what_no_query_sees_reaches_nothing():
    """Nor does it where a chunk is seen in part."""
    q, k, v = _inputs(T, H, G)
    unseen = jnp.arange(S)[None, :, None, None] >= jnp.maximum(LENGTHS + 2, 0)[:, None, None, None]
    spoil = lambda x: jnp.where(unseen, jnp.where(jnp.arange(S)[:, None, None] % 2 == 0, jnp.nan, jnp.inf), x)
    got = _attend((q, spoil(k), spoil(v)), "pallas_tpu", MASKS["cache"] | {"positions": LENGTHS - 1}, 32)
    hidden = MASKS["cache"]["mask"]
    wanted = _attend((q, k, v), "reference", {"mask": hidden, "positions": LENGTHS - 1})
    for x, y in zip(got, wanted, strict=True):
        assert_close(x, y, 1e-5)
    out = _attend((q, k, v.at[2, 5, 0, 0].set(jnp.nan)), "pallas_tpu", MASKS["cache"], 32)[0]
    assert np.isnan(out[2, :, :2, 0]).all()
    assert np.isfinite(out[:2]).all()


@pytest.mark.parametrize("halves", [1, 2])
@pytest.mark.parametrize("xp", [np, jnp])
def test_chunks_without_keys_are_no_work(xp, halves):
    some = np.array([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 1, 0]], bool)
    every = np.array([[1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 1, 0]], bool)
    work = items.items_of(xp.asarray(some), xp.asarray(every), halves)
    found = set()
    for line, count in zip(np.asarray(work.items), np.asarray(work.counts), strict=True):
        lines = [tuple(int(x) for x in items.parts_of(item)) for item in line[:count]]
        assert lines == sorted(lines)
        assert (line[count:] == line[count - 1]).all()  # which stay in fast memory to the end
        assert len(line) == 16
        assert {b for b, _, _ in lines} == {0, 1, 2}  # or a row would not be written
        found |= {x for x in lines if x[2] != EMPTY}
    assert found == {(0, 0, 2), (0, 1, 2), (0, 2, 1), (2, 3, 2)}
    assert int(work.longest) == max(np.asarray(work.counts)) <= 5


@pytest.mark.parametrize("s", [S, 128])
def test_split_keys_are_merged(s):
    """As on chips with two cores."""
    from jattn._call import targets
    from jattn._call.problem import reduce
    from jattn.backends.contract import Spec
    from jattn.backends.pallas_tpu import PALLAS_TPU
    from tests.problems import problem

    q, k, v = _inputs(T, H, G)
    arrays, options = (q, k[:, :s], v[:, :s]), MASKS["cache"]
    q, k, v, operands, signature = reduce(problem(arrays, options))
    spec = Spec(PALLAS_TPU, signature, q.dtype, None, (16, 32), targets.Target("tpu", "v5p", True))
    result = jax.jit(lambda q, k, v: PALLAS_TPU.forward(spec, q, k, v, operands))(q, k, v)
    wanted = _attend(arrays, "reference", options)
    for x, y in zip(result, wanted, strict=False):
        assert_close(x, y, 1e-5)
    assert np.isfinite(result.remainder).all()


def test_many_rows_do_not_fold():
    shapes = lambda t: [jax.ShapeDtypeStruct((1, n, 8, 128), jnp.bfloat16) for n in (t, 4096, 4096)]
    tile = lambda t: jattn.explain(*shapes(t), device="v5e").tile
    few, many = tile(16), tile(MOST_ROWS // 8 + 1)
    assert few is not None and many is not None
    assert few[0] == 16
    assert many[0] % 128 == 0
