"""Scores against explicit formulas, values and the gradient of every weight, in float64; corners, and memory."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jattn
from jattn import masks, normalizers, scores
from tests.cases import Draw, Sizes
from tests.evaluate import QUICK
from tests.tolerances import TOLERANCES, assert_close

SIZES = Sizes()  # four query heads on two key heads
M = 6


def _heads(weight, ndim):
    """A weight with a leading h, whether it has one or not."""
    return weight if weight.ndim > ndim else jnp.broadcast_to(weight, (SIZES.h, *weight.shape))


def _norm(x):
    return jnp.sqrt(jnp.sum(x * x, axis=-1))


# each as jattn has it, and as scores [b, h, t, s] of q [b, t, h, d] and k [b, s, h, d], the key's heads repeated

FORMULAS = {
    "dot": (
        scores.dot,
        lambda q, k, scale=SIZES.d**-0.5: scale * jnp.einsum("bthd,bshd->bhts", q, k),
    ),
    "general": (
        scores.general,
        lambda q, k, w, scale=1.0: scale * jnp.einsum("bthd,hdc,bshc->bhts", q, _heads(w, 2), k),
    ),
    "cosine": (
        scores.cosine,
        lambda q, k, scale=1.0: (
            scale
            * jnp.einsum("bthd,bshd->bhts", q, k)
            / (jnp.swapaxes(_norm(q), 1, 2)[..., None] * jnp.swapaxes(_norm(k), 1, 2)[:, :, None])
        ),
    ),
    "concat": (
        scores.concat,
        lambda q, k, w_q, w_k: (
            jnp.einsum("bthd,hd->bht", q, _heads(w_q, 1))[..., None]
            + jnp.einsum("bshd,hd->bhs", k, _heads(w_k, 1))[:, :, None]
        ),
    ),
    "additive": (
        scores.additive,
        lambda q, k, w_q, w_k, v: jnp.einsum(
            "bhtsm,hm->bhts",
            jnp.tanh(
                jnp.einsum("bthd,hdm->bhtm", q, _heads(w_q, 2))[:, :, :, None]
                + jnp.einsum("bshd,hdm->bhsm", k, _heads(w_k, 2))[:, :, None]
            ),
            _heads(v, 1),
        ),
    ),
}
CASES = {  # shapes of the weights: axes of `Sizes`, then numbers
    "dot": ("dot",),
    "dot-scale": ("dot", [""]),
    "general": ("general", ["dd"]),
    "general-heads": ("general", ["hdd"], [""]),
    "general-widths-heads": ("general", ["hd", 7]),
    "cosine": ("cosine",),
    "cosine-scale": ("cosine", [""]),
    "concat": ("concat", ["d"], ["d"]),
    "concat-heads": ("concat", ["hd"], ["hd"]),
    "concat-widths": ("concat", ["d"], ["h", 7]),
    "additive": ("additive", ["d", M], ["d", M], ["", M]),
    "additive-heads": ("additive", ["hd", M], ["hd", M], ["h", M]),
    "additive-heads-query": ("additive", ["hd", M], ["d", M], ["h", M]),
    "additive-heads-key": ("additive", ["d", M], ["hd", M], ["", M]),
    "additive-widths": ("additive", ["d", M], ["", 7, M], ["h", M]),
}


def make(name):
    """score, formula, and arrays: q, k, v, weights."""
    kind, *shapes = CASES[name]
    x = Draw(Sizes(key_width=7 if "widths" in name else 0), jnp.float64, 0)
    return *FORMULAS[kind], (*x.inputs(), *(x.normal(axes, *more) for axes, *more in shapes))


def plain(formula, q, k, v, *weights):
    k, v = (jnp.repeat(x, SIZES.h // SIZES.g, axis=2) for x in (k, v))
    return jnp.einsum("bhts,bshe->bthe", jax.nn.softmax(formula(q, k, *weights), axis=-1), v)


def values_and_gradients(fn, arrays):
    loss = lambda *x: (jnp.sum(jnp.sin(out := fn(*x))), out)
    slope = jax.value_and_grad(loss, tuple(range(len(arrays))), has_aux=True)
    (_, out), gradients = jax.jit(slope, compiler_options=QUICK)(*arrays)
    return [out, *gradients]


@pytest.mark.smoke
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", CASES)
def test_each_score_is_its_formula(name):
    score, formula, arrays = make(name)
    run = lambda q, k, v, *w: jattn.attention(q, k, v, score=score(*w), implementation="blockwise", blocks=(4, 5))
    wanted = values_and_gradients(functools.partial(plain, formula), arrays)
    assert len(wanted) == 1 + len(arrays)
    for n, (x, y) in enumerate(zip(values_and_gradients(run, arrays), wanted, strict=True)):
        assert_close(x, y, 2e-13, f"{name}: {'values' if n == 0 else f'gradient {n - 1}'}")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", CASES)
def test_the_definition_is_the_formula(name):
    """`score(query, key)` of one head, without the tiles."""
    score, formula, (q, k, _, *weights) = make(name)
    wanted = formula(q, jnp.repeat(k, SIZES.h // SIZES.g, axis=2), *weights)
    shapes = CASES[name][1:]
    cut = [x[3] if axes.startswith("h") else x for x, (axes, *_) in zip(weights, shapes, strict=True)]
    term = score(*cut)
    held = jax.tree.map(lambda x: x.array, term, is_leaf=lambda x: isinstance(x, jattn._terms.Operand))
    assert_close(held(q[1, :, 3], k[1, :, 1]), wanted[1, 3], 2e-14)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["dot", "general", "cosine"])
def test_a_number_is_the_same_scale_as_an_array(name):
    score, _, (q, k, v, *weights) = make(name)
    run = lambda scale: jattn.attention(q, k, v, score=score(*weights, scale), implementation="reference")
    assert_close(run(0.6), run(jnp.asarray(0.6)), 2e-15)
    assert_close(run(np.float64(0.6)), run(0.6), 0)
    assert np.abs(run(0.6) - run(1.6)).max() > 1e-3


# Cosine


@pytest.mark.parametrize("implementation", ["reference", "blockwise"])
def test_zero_vectors_have_cosine_zero_and_gradient_zero(x64, implementation):
    x = Draw(SIZES, jnp.float64, 0)
    q, k, v = x.inputs()
    q, k = q.at[:, 2].set(0), k.at[:, 4].set(0)
    options = {"score": scores.cosine(3.0), "implementation": implementation, "blocks": (4, 5)}
    loss = lambda q, k, v: sum(jnp.sum(jnp.sin(x)) for x in jattn.attention(q, k, v, **options, return_lse=True))
    slopes = jax.grad(loss, (0, 1, 2))

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(*arrays):
        only = masks.function(lambda i, j: j == 4)
        lse = [jattn.attention(*arrays, **options, mask=mask, return_lse=True)[1] for mask in (None, only)]
        return lse, *jax.jvp(slopes, arrays, arrays)

    (lse, only_lse), gradients, tangents = run(q, k, v)
    assert_close(lse[:, 2], np.full(lse[:, 2].shape, np.log(SIZES.s)), 1e-14)
    assert not np.any(only_lse)
    assert not np.any(gradients[0][:, 2])
    assert not np.any(gradients[1][:, 4])
    assert all(np.any(x) for x in gradients)
    assert all(np.all(np.isfinite(x)) for x in (*gradients, *tangents))


def test_cosine_does_not_depend_on_lengths():
    q, k, v = Draw(SIZES, jnp.float32, 0).inputs()
    wanted = jattn.attention(q, k, v, score=scores.cosine(5.0))
    for factor in (1e-30, 1e-19, 1e19, 1e30):  # the squares leave float32
        np.testing.assert_allclose(jattn.attention(factor * q, k, v, score=scores.cosine(5.0)), wanted, atol=2e-6)


# Memory


def _temporary(fn, *shapes) -> int:
    arrays = [jax.ShapeDtypeStruct(x, jnp.float32) for x in shapes]
    memory: Any = jax.jit(fn).lower(*arrays).compile().memory_analysis()
    return memory.temp_size_in_bytes


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_additive_never_stores_a_hidden_vector_for_every_pair(direction):
    t = s = 2048
    m = 32

    def forward(q, k, v, w_q, w_k, u):
        return jattn.attention(q, k, v, score=scores.additive(w_q, w_k, u))

    def backward(*arrays):
        return jax.grad(lambda *x: forward(*x).sum(), tuple(range(6)))(*arrays)

    shapes = [(1, t, 1, 16), (1, s, 1, 16), (1, s, 1, 16), (16, m), (16, m), (m,)]
    used = _temporary({"forward": forward, "backward": backward}[direction], *shapes)
    assert used < t * s * m * 4 / 32


@pytest.mark.parametrize("name", ["general", "concat", "additive"])
def test_heads_along_an_explicit_axis(name):
    """Weights lie with their heads wherever they were, since a product with others would gather queries and keys; and
    JAX asks even on one device how a result is sharded."""
    random = np.random.default_rng(0)
    q, k, w = (jnp.asarray(random.standard_normal(x), jnp.float32) for x in ((1, 3, 4, 2), (1, 5, 2, 2), (4, 2, 2)))
    score = {"general": lambda: scores.general(w), "concat": lambda: scores.concat(w[:, 0], w[:, 1])}
    score["additive"] = lambda: scores.additive(w, w, w[:, 0])
    attend = lambda q, k: jattn.attention(q, k, k, score=score[name]())
    mesh = jax.make_mesh((1,), ("heads",), axis_types=(AxisType.Explicit,))
    at = NamedSharding(mesh, PartitionSpec(None, None, "heads"))
    with jax.set_mesh(mesh):
        out = jax.jit(attend)(*jax.device_put((q, k), at))
    assert out.sharding.is_equivalent_to(at, 4)
    with jax.set_mesh(mesh):
        reduced = jax.eval_shape(lambda q, k: score[name]().reduce(q, k).query, *jax.device_put((q, k), at))
    assert reduced.sharding.spec[2] == "heads"
    assert_close(out, attend(q, k), 1e-6)


def _shapes():
    x = SIZES
    return (x.b, x.t, x.h, x.d), (x.b, x.s, x.g, x.d), (x.b, x.s, x.g, x.e)


WEIGHTED = {
    "general": lambda w: scores.general(w @ w.T),
    "cosine": lambda w: scores.cosine(jnp.sum(w)),
    "concat": lambda w: scores.concat(w[:, 0], w[:, 1]),
    "additive": lambda w: scores.additive(w, w, jnp.ones(M)),
    "additive of heads": lambda w: scores.additive(jnp.stack([w] * SIZES.h), jnp.stack([w] * SIZES.h), jnp.ones(M)),
}


@pytest.mark.parametrize("normalizer", ["softmax", "sparsemax"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", WEIGHTED)
def test_rows_that_see_nothing_and_keys_that_nobody_sees_reach_no_gradient(name, bad, normalizer):
    rng = np.random.default_rng(0)
    w, q, k, v = (rng.standard_normal(x).astype("float32") for x in ((SIZES.d, M), *_shapes()))
    seen = masks.lengths(jnp.full(SIZES.b, SIZES.s - 5), jnp.full(SIZES.b, SIZES.t - 4))

    def gradients(rest):
        ends = [x.copy() for x in (q, k, v)]
        for x, n in zip(ends, (4, 5, 5), strict=True):
            x[:, -n:] = rest
        normal = getattr(jattn.normalizers, normalizer)()
        of = lambda w, q, k, v: jattn.attention(q, k, v, score=WEIGHTED[name](w), mask=seen, normalizer=normal)
        return jax.grad(lambda *x: jnp.sum(of(*x) ** 2), (0, 1, 2, 3))(w, *ends)

    for x, y in zip(gradients(bad), gradients(0), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("name", WEIGHTED)
def test_a_nan_that_is_seen_reaches_the_gradient(name):
    w, q, k, v = (jnp.ones(x) for x in ((SIZES.d, M), *_shapes()))
    of = lambda w: jattn.attention(q.at[0, 1, 1].set(jnp.nan), k, v, score=WEIGHTED[name](w))
    assert np.isnan(of(w)[0, 1, 1]).all()
    assert np.isfinite(of(w)[0, 0]).all()
    assert np.isnan(jax.grad(lambda w: jnp.sum(of(w) ** 2))(w)).any()


@pytest.mark.parametrize("size", [1e5, 1e10, 1e20])
@pytest.mark.parametrize("name", ["softmax", "sparsemax", "entmax15", "sigmoid"])
@pytest.mark.parametrize("score", [scores.dot(), scores.general(np.eye(8, dtype="float32"), 0.3)])
def test_one_score_far_above_the_others_takes_all(score, name, size):
    """As the definition computes it: a product that is scaled after its sum would not be the same number twice."""
    random = np.random.default_rng(1)
    q, k, v = (jnp.asarray(random.standard_normal((1, n, 1, 8)), jnp.float32) for n in (5, 7, 7))
    given = {"score": score, "normalizer": getattr(normalizers, name)(), "implementation": "reference"}
    best = jax.nn.one_hot(jnp.argmax(q[0, :, 0] @ k[0, :, 0].T, -1), 7)
    if name == "sigmoid":
        best = (q[0, :, 0] @ k[0, :, 0].T > 0).astype(jnp.float32)
    out, pull = jax.vjp(lambda q: jattn.attention(q, k, v, **given), q * size)
    assert_close(out[0, :, 0], best @ v[0, :, 0], TOLERANCES["float32"].value)
    assert_close(pull(jnp.ones_like(out))[0], jnp.zeros_like(q), TOLERANCES["float32"].value)
