"""Terms as pytrees and as functions of a tile: what they hold, what is hidden from them, and classes of a user's own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.core import Tracer

import jattn
from jattn import gates, masks, mods, operand
from jattn._terms.operand import indices
from jattn._terms.term import Offsets, Signature, Term, Terms, bind, lift, modified, split
from tests.tolerances import assert_close

BACKENDS = ["blockwise", "pallas_tpu", "reference"]


Q, K, V = (np.random.default_rng(n).standard_normal((2, 8, 2, 4)).astype(np.float32) for n in range(3))


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    monkeypatch.setenv("JATTN_INTERPRET", "1")


def _attend(implementation, q: Any = Q, k: Any = K, v: Any = V, **options: Any):
    blocks = (3, 3) if implementation == "blockwise" else None
    return jattn.attention(q, k, v, implementation=implementation, blocks=blocks, **options)


NARROW = {
    "mod of rows": {"mods": mods.function(lambda s, i, j: 0.5 * i)},
    "mod of keys": {"mods": mods.function(lambda s, i, j: 0.5 * j)},
    "mod of nothing": {"mods": mods.function(lambda s, i, j: 1.0)},
    "gate of nothing": {"gates": gates.function(lambda w, i, j: 0.0)},
}


WHOLE = {
    "mod of rows": {"mods": mods.function(lambda s, i, j: 0 * s + 0.5 * i)},
    "mod of keys": {"mods": mods.function(lambda s, i, j: 0 * s + 0.5 * j)},
    "mod of nothing": {"mods": mods.function(lambda s, i, j: 0 * s + 1.0)},
    "gate of nothing": {"gates": gates.function(lambda w, i, j: 0 * w)},
}


@pytest.mark.parametrize("implementation", BACKENDS)
@pytest.mark.parametrize("name", NARROW)
def test_what_a_function_does_not_depend_on_is_the_same_over_the_tile(name, implementation):
    loss = lambda options: lambda *qkv: jnp.sum(_attend(implementation, *qkv, mask=masks.causal(), **options) ** 2)
    got, wanted = (jax.value_and_grad(loss(x[name]), (0, 1, 2))(Q, K, V) for x in (NARROW, WHOLE))
    jax.tree.map(lambda x, y: assert_close(x, y, 1e-5), got, wanted)


HIDING = {
    "bias": lambda bias: {"bias": bias},
    "mod": lambda bias: {"mods": (mods.bias(bias, "ts"),)},
    "function": lambda bias: {"mods": (mods.function(lambda s, i, j: jnp.where(j < 3, s, -jnp.inf)),)},
}


AFTER = {
    "soft cap": (lambda x: mods.softcap(x), 2.0),
    "temperature": (lambda x: mods.function(lambda s, i, j: s * x), -0.5),
    "look-up": (lambda x: mods.relative(jnp.full((2, 3), x), lambda r: jnp.clip(r, -1, 1) + 1), 0.3),
}


@pytest.mark.parametrize("implementation", BACKENDS)
@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize("hiding", HIDING)
def test_what_is_hidden_stays_hidden_under_the_mods_that_follow(hiding, after, implementation):
    """With zero gradients: those of the mods are what a mask in the place of the bias gives."""
    bias = np.where(np.arange(8) < 3, 0, -np.inf).astype(np.float32)[None].repeat(8, 0)
    mod, x = AFTER[after]

    def hidden(x, q, k):
        first = HIDING[hiding](bias)
        return jnp.sum(
            _attend(implementation, q, k, bias=first.get("bias"), mods=(*first.get("mods", ()), mod(x))) ** 2
        )

    masked = lambda x, q, k: jnp.sum(_attend(implementation, q, k, mask=masks.prefix(3), mods=(mod(x),)) ** 2)
    got, wanted = (jax.value_and_grad(f, (0, 1, 2))(x, Q, K) for f in (hidden, masked))
    jax.tree.map(lambda a, b: assert_close(a, b, 2e-5), got, wanted)


# Pytrees


class Held(Term):
    """A term of a user's own whose attributes are of every kind."""

    def __init__(self, array, number, inner, several):
        self.array, self.number, self.inner, self.several = array, number, inner, several


def _held(number=2.0):
    inner = mods.softcap(3.0)
    return Held(np.arange(3.0), number, inner, (operand(np.ones(2), "h"), mods.alibi(np.ones(2))))


def test_arrays_and_terms_are_children_and_all_else_is_static():
    leaves, tree = jax.tree.flatten(_held())
    assert [np.shape(x) for x in leaves] == [(3,), (2,), (2,)]
    again = jax.tree.unflatten(tree, leaves)
    assert type(again) is Held and again.number == 2.0 and again.inner == mods.softcap(3.0)
    assert tree == jax.tree.structure(_held())
    assert tree != jax.tree.structure(_held(3.0))


def test_a_changed_term_is_another_one():
    one = _held()
    other = one.changed(lambda x: x + 1 if isinstance(x, float) else x)
    assert (one.number, other.number) == (2.0, 3.0)
    assert other.inner is one.inner


def test_terms_are_told_their_indices_however_deep_they_lie():
    b, h = (indices(n, axis) for n, axis in ((2, "b"), (4, "h")))
    pair = (mods.softcap(2.0), Held(None, None, gates.dropout(0.5, 1), (gates.dropout(0.5, 2),)))
    _, held = bind(pair, b, h)
    for gate in (held.inner, *held.several):
        assert any(x is h for x in jax.tree.leaves(gate, is_leaf=lambda x: x is h))
    assert bind(3, b, h) == 3
    assert bind(Signature(None, ()), b, h) == Signature(None, ())  # a record is no tuple of terms


def test_a_term_is_taken_apart_and_put_together():
    arrays, signature = split((mods.alibi(np.arange(2.0)), masks.window(3, jnp.int32(1))))
    assert signature.axes == ("h", "")
    alibi, window = signature.fill(["slopes", "right"])
    assert alibi.slopes == "slopes" and (window.left, window.right) == (3, "right")
    assert [np.shape(x) for x in arrays] == [(2,), ()]


# One tile


I, J = jnp.arange(2)[:, None], jnp.arange(3)[None]


def test_positions_of_a_call_are_those_of_its_sequences():
    at = Offsets(lead=2, first=5).at(I, J)
    np.testing.assert_array_equal(at[0], I + 7)
    np.testing.assert_array_equal(at[1], J + 5)
    assert all(x is y for x, y in zip(Offsets().at(I, J), (I, J), strict=True))


def test_scores_are_hidden_by_the_mask_and_in_other_tiles():
    terms = Terms(lambda q, k: q @ k.T, (mods.function(lambda s, i, j: s + 10 * i + j),), masks.causal())
    q, k = jnp.ones((2, 1)), jnp.ones((3, 1))
    np.testing.assert_array_equal(terms.scores(q, k, I, J), [[1, -np.inf, -np.inf], [11, 12, -np.inf]])
    np.testing.assert_array_equal(terms.scores(q, k, I, J, masked=False), [[1, 2, 3], [11, 12, 13]])
    fresh = jnp.array([[False, True, True]])
    np.testing.assert_array_equal(terms.scores(q, k, I, J, False, fresh), [[-np.inf, 2, 3], [-np.inf, 12, 13]])
    np.testing.assert_array_equal(terms.scores(q, k, I, J, True, fresh), [[-np.inf] * 3, [-np.inf, 12, -np.inf]])


def test_weights_of_hidden_pairs_are_0_whatever_a_gate_makes_of_them():
    terms = Terms(None, mask=masks.causal(), gates=(gates.function(lambda w, i, j: w * jnp.log(i - j + 1.0)),))
    weight = jnp.array([[1.0, 0, 0], [0.5, 0.5, 0]])
    got = terms.weights(weight, I, J)
    np.testing.assert_allclose(got, [[0, 0, 0], [0.5 * np.log(2), 0, 0]], rtol=1e-6)
    gradient = jax.grad(lambda w: jnp.sum(terms.weights(w, I, J)))(weight)
    assert np.isfinite(gradient).all()
    assert np.isnan(terms.weights(weight, I, J, masked=False)[0, 1:]).any()


def test_mods_after_one_that_hides_do_not_see_what_it_hides():
    seen = []

    def look(s, i, j):
        seen.append(s)
        return s * 0 + 1

    hiding = mods.bias(np.array([0.0, -np.inf, 0.0], np.float32), "s")
    score = modified(jnp.ones((2, 3)), (hiding.changed(lambda x: x.array), mods.function(look)), I, J)
    np.testing.assert_array_equal(score, [[1, -np.inf, 1]] * 2)
    assert all(np.isfinite(x).all() for x in seen if not isinstance(x, Tracer))


@pytest.mark.parametrize("axes", ["", "b", "h", "bh"])
def test_a_function_of_one_head_is_lifted_to_those_that_its_arrays_have(axes):
    """`[b, g, r]` in front of a tile of rows, from operands that have some of these axes."""
    b, g, r, t = 2, 3, 2, 4
    rows = np.arange(b * g * r * t, dtype=np.float32).reshape(b, g, r, t)
    lead = ([b] if "b" in axes else []) + ([g, r] if "h" in axes else [])
    operand_ = np.arange(np.prod(lead, dtype=int), dtype=np.float32).reshape(lead)
    got = lift(lambda x, tiles: x * tiles[0], (axes,), ("bgr",))(rows, [operand_])
    full = operand_.reshape(*(lead[:1] if "b" in axes else [1]), *(lead[-2:] if "h" in axes else [1, 1]), 1)
    np.testing.assert_array_equal(got, rows * full)
