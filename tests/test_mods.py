"""Mods against their formulas: T5's buckets and ALiBi's slopes as published, tables, biases of any axes, and order."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import masks, mods, normalizers, operand, scores
from jattn.backends.pallas import fit
from jattn.mods._relative import _shear
from tests.cases import AXES, Draw, Sizes
from tests.evaluate import QUICK
from tests.problems import problem
from tests.tolerances import assert_close

SIZES = Sizes()
I, J = np.arange(SIZES.t)[:, None], np.arange(SIZES.s)[None]
TILES = [(4, 5), (13, 17), (1, 1), (6, 4)]  # of 13 queries and 17 keys


def plain(q, k, v, change=lambda score: score, live=None, scale=None):
    """Attention in einsums, `change` applied to scores `[b, h, t, s]`."""
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    score = change(jnp.einsum("bthd,bshd->bhts", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale))
    score = score if live is None else jnp.where(live, score, -jnp.inf)
    return jnp.einsum("bhts,bshe->bthe", jax.nn.softmax(score, axis=-1), v)


def agree(got, wanted, arrays, tolerance=2e-13):
    """Two functions of the arrays have the same values, and gradients of a sum of sines."""

    def both(fn):
        loss = lambda *x: (jnp.sum(jnp.sin(out := fn(*x))), out)
        slope = jax.value_and_grad(loss, tuple(range(len(arrays))), has_aux=True)
        return jax.jit(slope, compiler_options=QUICK)(*arrays)

    ((_, got_out), got_grads), ((_, wanted_out), wanted_grads) = both(got), both(wanted)
    assert_close(got_out, wanted_out, tolerance, "values")
    for n, (x, y) in enumerate(zip(got_grads, wanted_grads, strict=True)):
        assert_close(x, y, tolerance, f"gradient {n}")
        assert x.shape == arrays[n].shape


def blockwise(blocks=(4, 5), **fixed):
    """jattn as a function of q, k, v and options."""
    return functools.partial(jattn.attention, implementation="blockwise", blocks=blocks, **fixed)


@pytest.fixture
def draw(x64):
    del x64
    return Draw(SIZES, jnp.float64, 0)


# T5's buckets


def _t5(relative: int, bidirectional: bool, buckets: int, max_distance: int) -> int:
    """`relative_position_bucket` of mesh-tensorflow's and HF's T5, of one memory position minus query position."""
    got, n = 0, -relative
    if bidirectional:
        buckets //= 2
        if n < 0:
            got += buckets
        n = abs(n)
    else:
        n = max(n, 0)
    max_exact = buckets // 2
    if n < max_exact:
        return got + n
    large = max_exact + int(math.log(n / max_exact) / math.log(max_distance / max_exact) * (buckets - max_exact))
    return got + min(large, buckets - 1)


@pytest.mark.smoke
@pytest.mark.parametrize("sizes", [(32, 128), (32, 1000), (8, 20), (64, 256), (6, 7), (6, 100), (128, 100)])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_t5_bucket(bidirectional, sizes):
    relative = np.arange(-1200, 1201, dtype=np.int32)
    got = np.asarray(mods.t5_bucket(bidirectional, *sizes)(jnp.asarray(relative)))
    wanted = np.array([_t5(int(x), bidirectional, *sizes) for x in relative])
    np.testing.assert_array_equal(got, wanted)


def test_t5_bucket_as_published():
    """Rows of the table that T5's code gives for 32 buckets up to 128."""
    relative = np.array([-200, -128, -91, -64, -16, -9, -8, -7, -1, 0, 1, 7, 8, 64, 200], np.int32)
    both = mods.t5_bucket(True)(jnp.asarray(relative))
    np.testing.assert_array_equal(both, [15, 15, 15, 14, 10, 8, 8, 7, 1, 0, 17, 23, 24, 30, 31])
    past = mods.t5_bucket(False)(jnp.array([-200, -128, -113, -112, -64, -16, -15, 0, 5], np.int32))
    np.testing.assert_array_equal(past, [31, 31, 31, 30, 26, 16, 15, 0, 0])


@pytest.mark.parametrize("arguments", [(True, 3), (False, 1), (True, 32, 8), (False, 32, 16)])
def test_t5_bucket_refuses(arguments):
    with pytest.raises(ValueError, match="buckets must be >= . and max_distance >"):
        mods.t5_bucket(*arguments)


# Relative positions

BUCKETS = {
    "clip": (7, lambda r: jnp.clip(r, -3, 3) + 3),
    "every": (SIZES.t + SIZES.s, lambda r: r + SIZES.t),
    "t5": (8, mods.t5_bucket(True, 8, 9)),
    "t5-past": (8, mods.t5_bucket(False, 8, 9)),
}


@pytest.mark.parametrize(("name", "blocks"), list(zip(BUCKETS, TILES, strict=True)))
def test_relative_is_a_lookup(draw, name, blocks):
    count, bucket = BUCKETS[name]
    arrays = *draw.inputs(), draw.normal("h", count)
    got = lambda q, k, v, table: blockwise(blocks)(q, k, v, mods=mods.relative(table, bucket))
    agree(got, lambda q, k, v, table: plain(q, k, v, lambda x: x + table[:, bucket(J - I)]), arrays)


def test_relative_takes_t5s_buckets_by_default(draw):
    arrays = *draw.inputs(), draw.normal("h", 10)
    bucket: Any = mods.t5_bucket(True, 10)
    got = lambda q, k, v, table: blockwise()(q, k, v, mods=mods.relative(table))
    agree(got, lambda q, k, v, table: plain(q, k, v, lambda x: x + table[:, bucket(J - I)]), arrays)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (5, 5), (3, 8), (8, 3)])
def test_shear_is_a_toeplitz_matrix(shape):
    rows, columns = shape
    strip = np.arange(rows + columns - 1)
    wanted = strip[np.arange(columns)[None] - np.arange(rows)[:, None] + rows - 1]
    np.testing.assert_array_equal(_shear(strip, rows, columns), wanted)


def test_relative_looks_up_diagonals_not_pairs():
    """`bt + bs - 1` of them a tile, forwards and backwards."""
    looked = []

    def bucket(r):
        looked.append(r.shape)
        return jnp.clip(r, 0, 3)

    q = jnp.ones((1, 64, 1, 2))
    loss = lambda table: blockwise((16, 32))(q, q, q, mods=mods.relative(table, bucket)).sum()
    jax.jit(jax.grad(loss)).lower(jnp.ones((1, 4)))
    assert set(looked) - {(2003,)} == {(16 + 32 - 1,)}  # the numbers on which it is checked


# ALiBi

# from the paper (Press et al. 2022) for 8 heads, and its code for 12: those of 8, then every other one of 16
SLOPES = {8: [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]}
SLOPES[12] = [*SLOPES[8], 0.7071067811865476, 0.35355339059327384, 0.17677669529663692, 0.08838834764831849]
SLOPES |= {1: [2.0**-8], 2: [2.0**-4, 2.0**-8], 3: [2.0**-4, 2.0**-8, 2.0**-2]}


@pytest.mark.parametrize("heads", SLOPES)
def test_alibi_slopes(heads):
    np.testing.assert_allclose(mods.alibi_slopes(heads), SLOPES[heads], rtol=1e-6)


def test_alibi(draw):
    arrays = *draw.inputs(), draw.normal("h")
    wanted = lambda q, k, v, m: plain(q, k, v, lambda x: x - m[:, None, None] * np.abs(I - J))
    agree(lambda q, k, v, m: blockwise()(q, k, v, mods=mods.alibi(m)), wanted, arrays)


# Soft cap


def test_softcap(draw):
    arrays = *draw.inputs(), draw.number(0.7)
    wanted = lambda q, k, v, cap: plain(q, k, v, lambda x: cap * jnp.tanh(x / cap))
    agree(lambda q, k, v, cap: blockwise()(q, k, v, mods=mods.softcap(cap)), wanted, arrays)
    agree(
        lambda q, k, v: blockwise()(q, k, v, mods=mods.softcap(0.7)), lambda q, k, v: wanted(q, k, v, 0.7), arrays[:3]
    )


# Biases


def test_bias_of_every_subset_of_axes(draw):
    """All at once: each has its own gradient, summed over the axes that it lacks."""
    arrays = *draw.inputs(), *(draw.normal(axes, scale=0.5) for axes in AXES)
    spread = lambda x, axes: x.reshape([getattr(SIZES, a) if a in axes else 1 for a in "bhts"])
    got = lambda q, k, v, *rest: blockwise()(q, k, v, mods=[mods.bias(*x) for x in zip(rest, AXES, strict=True)])
    agree(got, lambda q, k, v, *rest: plain(q, k, v, lambda x: x + sum(map(spread, rest, AXES))), arrays)


@pytest.mark.parametrize("shape", [(), (13, 1), (4, 1, 17), (2, 1, 1, 17)])
def test_bias_argument_of_every_shape(draw, shape):
    arrays = *draw.inputs(), draw.normal("", *shape)
    wanted = lambda q, k, v, bias: plain(q, k, v, lambda x: x + bias)
    agree(lambda q, k, v, bias: blockwise()(q, k, v, bias=bias), wanted, arrays)


# Order


def test_mods_come_in_order_and_the_bias_first(draw):
    arrays = *draw.inputs(), draw.normal("hts"), draw.normal("h")

    def wanted(q, k, v, bias, m):
        return plain(q, k, v, lambda x: 1.5 * jnp.tanh((x + bias) / 1.5) - m[:, None, None] * np.abs(I - J), I >= J)

    def got(q, k, v, bias, m):
        chain = (mods.softcap(1.5), mods.alibi(m))
        return blockwise()(q, k, v, bias=bias, mods=chain, mask=masks.causal())

    agree(got, wanted, arrays)
    turned = blockwise()(*arrays[:3], mods=(mods.alibi(arrays[4]), mods.softcap(1.5)))
    assert np.abs(turned - blockwise()(*arrays[:3], mods=(mods.softcap(1.5), mods.alibi(arrays[4])))).max() > 1e-3
    agree(
        lambda q, k, v, m: blockwise()(q, k, v, mods=(mods.alibi(m), mods.softcap(1.5))),
        lambda q, k, v, m: plain(q, k, v, lambda x: 1.5 * jnp.tanh((x - m[:, None, None] * np.abs(I - J)) / 1.5)),
        (*arrays[:3], arrays[4]),
    )


def test_mods_come_after_scaling_and_before_the_mask(draw):
    """A mod sees the scaled score, and cannot bring back what the mask forbids."""
    q, k, v = draw.inputs()
    got = blockwise()(
        q, k, v, score=scores.dot(0.3), mask=masks.causal(), mods=mods.function(lambda s, i, j: s * s + 1e6 * (j > i))
    )
    assert_close(got, plain(q, k, v, lambda x: x * x, I >= J, scale=0.3), 2e-14)


# Functions


@pytest.mark.parametrize("blocks", TILES[::3])
def test_function_gets_tiles_and_positions(draw, blocks):
    shapes = set()

    def fn(score, i, j, *tiles):
        assert i.dtype == j.dtype == jnp.int32
        shapes.add((score.shape, i.shape, j.shape, *(x.shape for x in tiles)))
        b, h, t, s, ts, table = tiles
        return score * b + jnp.sin(h * i) * t + jnp.cos(s * j) + ts + table[2]

    named = ["b", "h", "bt", "hs", "ts"]
    arrays = *draw.inputs(), *(draw.normal(a) for a in named), draw.normal("h", 3)

    def got(q, k, v, *rest):
        operands = [operand(x, a) for x, a in zip(rest, [*named, "h"], strict=True)]
        return blockwise(blocks)(q, k, v, mods=mods.function(fn, *operands))

    def wanted(q, k, v, b, h, t, s, ts, table):
        h, table = h[:, None, None], table[:, 2, None, None]
        change = lambda x: x * b[:, None, None, None] + jnp.sin(h * I) * t[:, None, :, None]
        return plain(q, k, v, lambda x: change(x) + jnp.cos(s[:, None] * J) + ts + table)

    agree(got, wanted, arrays)
    rows, columns = (-(-n // -(-n // m)) for n, m in zip((SIZES.t, SIZES.s), blocks, strict=True))
    tile = (rows, columns), (rows, 1), (1, columns), (), (), (rows, 1), (1, columns), (rows, columns), (3,)
    assert tile in shapes
    checked = {1009: rows, 2003: columns, 1013: rows, 2011: columns}  # the two tiles on which it is checked
    probe = lambda x: tuple(checked.get(n, n) for n in x)
    assert {tuple(map(probe, x)) for x in shapes} == {tile}


def test_function_of_a_static_array_without_axes(draw):
    q, k, v = draw.inputs()
    got = blockwise()(q, k, v, mods=mods.function(lambda s, i, j, c: s * c[1], np.array([2.0, 3.0])))
    assert_close(got, plain(q, k, v, lambda x: 3 * x), 2e-14)


# Gumbel noise


def test_gumbel_noise_is_independent_of_the_tiling(draw):
    q, k, v = draw.inputs()
    normalizer = normalizers.gumbel(jax.random.key(3), 0.8)
    wanted = jattn.attention(q, k, v, normalizer=normalizer, implementation="reference")
    seen = jattn.weights(q, k, v, normalizer=normalizer)
    v_of_head = jnp.repeat(v, SIZES.h // SIZES.g, axis=2)
    assert_close(jnp.einsum("bhts,bshe->bthe", seen, v_of_head), wanted, 2e-14)
    for blocks in TILES:
        assert_close(blockwise(blocks)(q, k, v, normalizer=normalizer), wanted, 2e-14)


def test_gumbel_noise_differs_between_pairs_heads_and_elements():
    """Of equal scores, the weights are those of the noise alone: softmax(-log(-log(u)) / temperature)."""
    b, t, h = 2, 40, 3
    x = jnp.zeros((b, t, h, 1))
    got = np.asarray(jattn.weights(x, x, x, normalizer=normalizers.gumbel(jax.random.key(0), 2.0)))
    noise = 2.0 * np.log(got)
    noise -= noise.mean(-1, keepdims=True)
    assert len(np.unique(noise.round(4))) > 0.8 * noise.size
    for first, second in itertools.combinations(noise.reshape(b * h, t * t), 2):
        assert abs(np.corrcoef(first, second)[0, 1]) < 5 / t
    # standard Gumbel noise has variance pi^2 / 6
    np.testing.assert_allclose(noise.var() * t / (t - 1), np.pi**2 / 6, rtol=0.08)


# What a query or a key has to say of a relative position


def _deberta(q, k, v, c2p, p2c):
    """He et al. 2021, equation 4: q.k + q.c2p[delta(i, j)] + k.p2c[delta(j, i)], delta(i, j) = i - j + 4 within the table."""
    scale = (3 * q.shape[-1]) ** -0.5
    keys = jnp.repeat(k, q.shape[2] // k.shape[2], axis=2)
    said = mods.relative_content(scale * q, c2p, lambda r: jnp.clip(4 - r, 0, 8))
    heard = mods.relative_content(scale * keys, p2c, lambda r: jnp.clip(4 + r, 0, 8), of="key")
    return {"mods": (said, heard), "score": scores.dot(scale)}


def _deberta_plain(q, k, score, c2p, p2c):
    delta = np.clip(I - J + 4, 0, 8)
    said = jnp.einsum("bthd,tshd->bhts", q, c2p[delta][:, :, None].repeat(4, 2))
    heard = jnp.einsum("bshd,htsd->bhts", k, p2c[:, np.clip(J - I + 4, 0, 8)])
    return (score + said + heard) * (3 * q.shape[-1]) ** -0.5


def _transformer_xl(q, k, v, r, u, w):
    """Dai et al. 2019, section 3.3: (q + u).k + (q + w).r[i - j], with an entry for every relative position."""
    moved = scores.dot(1.0)
    of_keys = jnp.einsum("hd,bshd->bhs", u, jnp.repeat(k, 2, axis=2))
    return {
        "score": moved,
        "mods": (mods.bias(of_keys, "bhs"), mods.relative_content(q + w, r, lambda r: SIZES.t - 1 - r + SIZES.s)),
    }


def _transformer_xl_plain(q, k, score, r, u, w):
    return jnp.einsum("bthd,bshd->bhts", q + u, k) + jnp.einsum(
        "bthd,htsd->bhts", q + w, r[:, SIZES.t - 1 + SIZES.s + I - J]
    )


def _sam(q, k, v, ys, xs):
    """Li et al. 2022, of patches in rows of 4: q.ys[y(i) - y(j)] + q.xs[x(i) - x(j)]."""
    y, x = (np.arange(SIZES.t) // 4)[:, None] - np.arange(5), (np.arange(SIZES.t) % 4)[:, None] - np.arange(4)
    said = (jattn.operand(jnp.einsum("bthd,tnd->bhtn", q, z), "bht") for z in (ys[y + 4], xs[x + 3]))
    look_up = lambda content, n: jnp.take(content[:, 0], n[0], axis=1, mode="clip")
    return {
        "mods": mods.function(lambda s, i, j, y, x: s + look_up(y, j // 4) + look_up(x, j % 4), *said),
        "score": scores.dot(1.0),
    }


def _sam_plain(q, k, score, ys, xs):
    of = lambda table, at: jnp.einsum("bthd,tsd->bhts", q, table[at])
    return score + of(ys, I // 4 - J // 4 + 4) + of(xs, I % 4 - J % 4 + 3)


CONTENT = {
    "deberta": (_deberta, _deberta_plain, lambda x: (x.normal("", 9, x.d), x.normal("h", 9, x.d))),
    "transformer-xl": (
        _transformer_xl,
        _transformer_xl_plain,
        lambda x: (x.normal("h", 40, x.d), x.normal("hd"), x.normal("hd")),
    ),
    "sam": (_sam, _sam_plain, lambda x: (x.normal("", 9, x.d), x.normal("", 7, x.d))),
}


@pytest.mark.parametrize("blocks", [(4, 5), (1, 3), (13, 17)])
@pytest.mark.parametrize("name", CONTENT)
def test_scores_of_relative_positions_by_content(draw, name, blocks):
    options, change, learned = CONTENT[name]
    arrays = *draw.inputs(), *(0.3 * x for x in learned(draw))

    def got(q, k, v, *more):
        return jattn.attention(
            q, k, v, **options(q, k, v, *more), mask=masks.window(9, 5), implementation="blockwise", blocks=blocks
        )

    def wanted(q, k, v, *more):
        keys = jnp.repeat(k, 2, axis=2)
        return plain(q, k, v, lambda score: change(q, keys, score, *more), (I - J <= 9) & (J - I <= 5), scale=1.0)

    agree(got, wanted, arrays)


def test_why_kernels_refuse_content(draw):
    said = mods.relative_content(draw.normal("bth", 3), draw.normal("", 5, 3))
    reason = fit.unfit_terms(problem(draw.inputs(), {"mods": said}), lambda x: None, lambda x, tiles: None)
    assert reason == "has no kernel for mods.relative_content, a product of its own for each tile"


@pytest.mark.parametrize("implementation", ["reference", "blockwise", "pallas_tpu"])
@pytest.mark.parametrize("shift", [0, 20, -30])
def test_buckets_beyond_the_table_are_its_first_and_its_last(monkeypatch, shift, implementation):
    monkeypatch.setenv("JATTN_INTERPRET", "1")
    q, k, v = (jax.random.normal(jax.random.key(n), (1, 8, 2, 4)) for n in range(3))
    table = jax.random.normal(jax.random.key(3), (2, 8))

    def loss(table, bucket, **options):
        return jnp.sum(jattn.attention(q, k, v, mods=mods.relative(table, bucket), **options) ** 2)

    got = jax.value_and_grad(loss)(table, lambda r: r + shift, implementation=implementation)
    wanted = jax.value_and_grad(loss)(table, lambda r: jnp.clip(r + shift, 0, 7), implementation="reference")
    for x, y in zip(got, wanted, strict=True):
        assert_close(x, y, 1e-5)


@pytest.mark.parametrize("of", ["query", "key"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_content_of_rows_that_see_nothing_reaches_no_gradient_of_the_table(bad, of):
    q, k, v = (jax.random.normal(jax.random.key(n), (1, 8, 2, 4)) for n in range(3))
    table, seen = jax.random.normal(jax.random.key(3), (2, 15, 4)), masks.lengths(jnp.array([5]), jnp.array([5]))

    def slope(rest):
        content = (q if of == "query" else k).at[:, 5:].set(rest)
        attend = lambda x: jattn.attention(q, k, v, mods=mods.relative_content(content, x, of=of), mask=seen)
        return jax.grad(lambda x: jnp.sum(attend(x) ** 2))(table)

    np.testing.assert_array_equal(slope(bad), slope(0.0))
