"""Terms that are not defined at pairs that the mask hides: what they are there reaches nothing, on any backend.

A mod of log(i - j + 1) is NaN above a causal diagonal, and 0 * NaN is NaN in a gradient.  Each case comes with the same
term defined everywhere, by which it is held against the reference.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import gates, masks, mods, normalizers, scores
from tests.tolerances import assert_close

T, S = 37, 41
UNTIL = jnp.array([29, 33])


def _far(i, j, least):
    return jnp.maximum(i - j, least).astype(jnp.float32)


def _scales(unseen):
    scale = 1 + jnp.arange(S) / S
    return jattn.operand(jnp.where(jnp.arange(S) < jnp.max(UNTIL), scale, unseen), "s")


def _times(x, i, j, scale):
    return x * scale


def _terms(defined):
    """Named calls whose terms are `defined` at hidden pairs, or not."""
    least, unseen = (0, 1.0) if defined else (-S, jnp.nan)
    of_keys = jnp.where(jnp.arange(S) < UNTIL[:, None], jnp.cos(jnp.arange(S)), unseen)
    of_rows = jnp.where(jnp.arange(T) < 20, jnp.arange(T) + jnp.ones((2, 1)), unseen)
    some_rows = masks.function(lambda i, j: i < 20)
    root = mods.function(lambda s, i, j: s * jnp.sqrt(_far(i, j, least)))
    flat = mods.function(lambda s, i, j: jnp.sqrt(jnp.abs(s) * (1 + _far(i, j, least))))
    weigh = gates.function(lambda w, i, j: w * jnp.sqrt(_far(i, j, least)))
    return {
        "mod": {"mask": masks.causal(), "mods": (root,)},
        "mod-after-mod": {"mask": masks.causal(), "mods": (mods.softcap(5.0), root, mods.softcap(3.0))},
        "no-derivative-at-0": {"mask": masks.causal(-3), "mods": (flat,)},  # whose first rows see nothing
        "gate": {"mask": masks.causal(), "gates": (weigh,)},
        "gates-of-a-dropout": {"mask": masks.causal(), "gates": (weigh,), "dropout": gates.dropout(0.3, 1)},
        "mod-of-keys": {"mask": masks.lengths(UNTIL), "mods": (mods.function(_times, _scales(unseen)),)},
        "gate-of-keys": {"mask": masks.lengths(UNTIL), "gates": (gates.function(_times, _scales(unseen)),)},
        "cap-after-a-bias": {"mask": masks.lengths(UNTIL), "mods": (mods.bias(of_keys, "bs"), mods.softcap(2.0))},
        "cap-after-a-bias-of-rows": {"mask": some_rows, "mods": (mods.bias(of_rows, "bt"), mods.softcap(2.0))},
        "centres": {"mask": some_rows, "gates": (gates.gaussian(of_rows, 9.0),)},
        "run-time": {"mask": masks.causal(jnp.int32(0)) & masks.lengths(UNTIL), "mods": (root,), "gates": (weigh,)},
    }


def _learned(defined):
    """Named functions of a number or array that other terms learn, to a call; and where that starts."""
    terms = _terms(defined)
    root, weigh, cap = terms["mod"]["mods"], terms["gate"]["gates"], mods.softcap(3.0)
    over, of_keys = mods.function, terms["cap-after-a-bias"]["mods"][0]
    causal, until = {"mask": masks.causal()}, {"mask": masks.lengths(UNTIL)}
    wide = jnp.linspace(-1, 1, 8)
    centres = jnp.full((2, T), 20.0)
    return {
        "number": (lambda x: {**causal, "mods": (*root, over(lambda s, i, j: s / x))}, 2.0),
        "number-after-a-bias": (lambda x: {**until, "mods": (of_keys, over(lambda s, i, j: s / x))}, 2.0),
        "slopes": (lambda x: {**causal, "mods": (*root, mods.alibi(x), cap)}, jnp.arange(1.0, 5.0)),
        "slopes-after-a-bias": (lambda x: {**until, "mods": (of_keys, mods.alibi(x), cap)}, jnp.arange(1.0, 5.0)),
        "cap-after-a-bias": (lambda x: {**until, "mods": (of_keys, mods.softcap(x))}, jnp.float32(2)),
        "bias-before": (lambda x: {**causal, "mods": (mods.bias(x, "ts"), *root)}, jnp.zeros((T, S))),
        "scale": (lambda x: {**until, "mods": (of_keys, cap), "score": scores.dot(x)}, jnp.float32(0.5)),
        "concat": (lambda x: {**causal, "mods": (*root, cap), "score": scores.concat(x, x[::-1])}, wide),
        "temperature": (
            lambda x: {**until, "mods": of_keys, "normalizer": normalizers.gumbel(jax.random.key(1), x)},
            jnp.float32(2),
        ),
        "sigma": (lambda x: {**causal, "gates": (*weigh, gates.gaussian(centres, x))}, jnp.float32(9)),
        "gate": (
            lambda x: {**causal, "gates": (*weigh, gates.function(_times, jattn.operand(x, "s")))},
            jnp.cos(jnp.arange(S)),
        ),
    }


OTHERS = {
    "additive": {"score": scores.additive(jnp.eye(8), jnp.eye(8), jnp.ones(8))},
    "sparsemax": {"normalizer": normalizers.sparsemax()},
    "entmax15": {"normalizer": normalizers.entmax15()},
    "sigmoid": {"normalizer": normalizers.sigmoid()},
    "straight-through": {"normalizer": normalizers.hard(straight_through=True)},
}


def _arrays():
    random = np.random.default_rng(0)
    shapes = (2, T, 4, 8), (2, S, 2, 8), (2, S, 2, 8)
    return [jnp.asarray(random.standard_normal(x), jnp.float32) for x in shapes]


def _derivatives(terms, implementation):
    def attend(*arrays):
        return jattn.attention(*arrays, **terms, implementation=implementation)

    return _both_modes(attend, *_arrays())


def _both_modes(attend, *inputs):
    """What a call gives, its derivative in forward mode, and its gradients, of one program."""

    @jax.jit
    def derivatives(*inputs):
        loss = lambda *inputs: jnp.sum(jnp.sin(attend(*inputs)))
        tangents = tuple(jnp.cos(x) for x in inputs)
        return jax.jvp(attend, inputs, tangents), jax.grad(loss, tuple(range(len(inputs))))(*inputs)

    return derivatives(*inputs)


def _check(terms, expected, implementation):
    got, want = _derivatives(terms, implementation), _derivatives(expected, "reference")
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert_close(x, y, 1e-4)


@pytest.mark.parametrize("implementation", ["reference", "blockwise", "pallas_tpu"])
@pytest.mark.parametrize("name", _terms(True))
def test_what_is_not_defined_where_pairs_are_hidden_reaches_nothing(monkeypatch, name, implementation):
    monkeypatch.setenv("JATTN_INTERPRET", "1")
    _check(_terms(False)[name], _terms(True)[name], implementation)


@pytest.mark.parametrize("implementation", ["reference", "blockwise", "pallas_tpu"])
@pytest.mark.parametrize("name", _learned(True))
def test_what_one_term_makes_of_hidden_pairs_reaches_nothing_that_another_learns(monkeypatch, name, implementation):
    monkeypatch.setenv("JATTN_INTERPRET", "1")

    def derivatives(defined, implementation):
        options, x = _learned(defined)[name]
        attend = lambda x, *arrays: jattn.attention(*arrays, **options(x), implementation=implementation)
        return _both_modes(attend, jnp.asarray(x), *_arrays())

    got, want = derivatives(False, implementation), derivatives(True, "reference")
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert_close(x, y, 3e-4)


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("implementation", ["reference", "blockwise"])
def test_of_other_scores_and_normalizers(other, implementation):
    undefined, defined = ({**_terms(x)["run-time"], **OTHERS[other]} for x in (False, True))
    _check(undefined, defined, implementation)


@pytest.mark.parametrize("implementation", ["blockwise", "pallas_tpu"])
@pytest.mark.parametrize("kind", ["mods", "gates"])
def test_rows_past_the_end_of_a_tile_are_hidden_too(monkeypatch, kind, implementation):
    """Square roots of how many rows are left, without a mask, with as many keys as a tile has."""
    monkeypatch.setenv("JATTN_INTERPRET", "1")
    q, k, v = _arrays()
    k, v = (jnp.tile(x, (1, 4, 1, 1))[:, :128] for x in (k, v))
    left = {"mods": mods, "gates": gates}[kind].function(lambda x, i, j: x * jnp.sqrt((T - i).astype(x.dtype)))

    def gradients(implementation):
        loss = lambda *x: jnp.sum(jnp.sin(jattn.attention(*x, **{kind: left}, implementation=implementation)))
        return jax.grad(loss, (0, 1, 2))(q, k, v)

    for got, want in zip(gradients(implementation), gradients("reference"), strict=True):
        assert_close(got, want, 1e-4)


def test_of_blocks_and_second_derivatives():
    """Several blocks of keys, and the gradient of a gradient."""
    q, k, v = (jnp.tile(x, (1, 30, 1, 1))[:1] for x in _arrays())

    def curved(terms):
        loss = lambda q: jnp.sum(jnp.sin(jattn.attention(q, k, v, **terms, implementation="blockwise")))
        return jax.jvp(jax.grad(loss), (q,), (jnp.ones_like(q),))

    for got, want in zip(curved(_terms(False)["mod"]), curved(_terms(True)["mod"]), strict=True):
        assert_close(got, want, 1e-4)


def test_a_scale_of_a_key_that_nobody_sees_reaches_no_gradient():
    q, k, v = _arrays()
    of_keys, of_values = (jnp.ones(k.shape[:3]).at[:, 33:].set(jnp.nan) for _ in range(2))

    def loss(q):
        narrow = [jnp.round(20 * x).astype(jnp.int8) for x in (k, v)]
        return jnp.sum(jattn.attention(q, *narrow, scales=(of_keys, of_values), mask=masks.lengths(UNTIL)))

    assert bool(jnp.isfinite(jax.grad(loss)(q)).all())
